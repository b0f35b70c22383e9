"""What we change in Ray Serve, by its extension points.

unary_calls   the request router of the stages
scaling       the autoscaling policy of the ImageLoader
"""
