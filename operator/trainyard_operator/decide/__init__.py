"""What the operator decides: pure functions over frozen data; no clock, no I/O, no Kopf.

In reading order: `model` (what is observed, and what a plan is), `parse` (views from Kubernetes dicts);
`lifecycle` (the state machine of a job: `decide_job`, `decide_version`) with its parts `case` (what they share), `start` (what a job
needs to start), `queued` (waiting, and the opening of an attempt), `execution` (an attempt while it lives), `settle` (what its
end changes), `restart` (the next attempt in the same pod), `versions` (the ModelVersion of a run), `cleanup`, `warnings`,
`notes` (what becomes an Event);
`evidence` and `failure` (why an attempt ended), `retry` (what follows), `diagnosis` (why a pod does not start) with `scheduling`
(why no node takes it), `denials` (why it may not be made) and `subject` (whose field it is that somebody should change), `refusals` (what the cluster does not let the operator do), `nodes` (when one is lost);
`service` (`decide_service`) with `jobs` (what a job says about itself), `tally` (what they add up to), `admission` (which waiting jobs start
now), `degradation`, `scaling` (how many instances) and `standby` (warm ones, and
who takes which); `budget` (`decide_budget`: training time that is set aside, used, left).
"""
