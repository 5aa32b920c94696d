"""What the mirror tells about itself: events, metrics, logs. A leaf: core code imports only `metrics.events`."""
