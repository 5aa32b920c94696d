"""Grafana's dashboards as code: `python -m deploy.grafana` writes deploy/grafana/dashboards/*.json.

`panels` knows how a panel of ours looks, one module for each dashboard says what is on it, `dashboards` puts variables
and links around.
"""
