"""What we change in Ray Serve, by its extension points.

unary_calls    the request router of the stages
pending_calls  the calls that it counts; which replicas and nodes are silent
scaling        the autoscaling policy of the ImageLoader
"""
