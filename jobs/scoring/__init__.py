"""Parts of `jobs.batch_score` and `jobs.batch_ray`.

inputs        batch_inputs (tables)
batch_score   inputs ─▶ scorer ─▶ service_client, over HTTP ─▶ batch_output (rows)
batch_ray     cluster_run: cluster_inputs ─▶ cluster_stages (cluster_images, tiles), or cluster_through a service
              ─▶ cluster_output
"""
