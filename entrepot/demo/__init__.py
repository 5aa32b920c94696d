"""`entrepot demo`: a registry, a mirror before it and clients, all on this machine, with no network at all.

The registry and the mirror are the programs that everybody runs (`entrepot serve`), as processes of their own; what is
between them (`link`) and the clients (`clients`, `rollouts`) are of the demo. `running` puts it all together.
"""
