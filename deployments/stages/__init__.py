"""What the stages share.

stage         deadlines, times, counts, exceptions
retry_alone   an image that would delay the others of its call
in_process    a stage without replicas of its own (`layout: together`)
"""
