"""`entrepot doctor`: what can be wrong with a mirror, its machine, upstreams and fleet, and what to do about it.

`folder`, `upstream`, `running`, `consumers`, `fleet` and `bucket` look and return what they saw; `judging` and
`judging_shared` make findings of that, without any I/O; `examination` has all of them look at once. Nothing is changed
or kept, but for a file, a key and an object that are written and removed again to see that they can be.
"""
