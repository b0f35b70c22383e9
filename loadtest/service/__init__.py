"""A service on this machine: starts and stops it, and samples what it uses under load.

one node        local_service, as `serve run` does; machine: free ports, and facts about this machine for results
several         local_service ─▶ local_cluster ─▶ node_network: nodes that can be cut off; load_balancer: before their proxies
what it uses    watch: CPU and memory of its processes, by part (parts); scrape: its metrics; processes: a process with all below it
"""
