"""The operator: watches the cluster, decides by pure functions, and writes what they say.

In reading order: `__main__` starts the parts of a replica; `settings`, `logs`; `clock` and `cluster`, the way to the API server; `lease`,
who leads; `shell` (Kopf) and `watch` take events into the `cache` and put keys on the `queue`; `reconcile` takes a key, asks
`decide` for a plan, writes the status and has `actions` carry out the rest, with what `manifests`, `standby_manifests` and `handover` render;
`status` and `events` say it to people. Beside that, in every replica: `intake` takes the trainers' reports, which `tokens` vouch for
and `reported` turns into patches, over the certificate of `tls`; `probes` and `metrics` say how it is.
"""
