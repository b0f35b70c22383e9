"""Parts of `jobs.batch_score` and `jobs.batch_ray`.

inputs        batch_inputs (tables)
batch_score   inputs ─▶ scorer ─▶ service_client, over HTTP ─▶ batch_output
batch_ray     cluster_run: cluster_inputs ─▶ cluster_stages (tiles), or cluster_through a service ─▶ cluster_output, cluster_coco
"""
