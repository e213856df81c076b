"""The API of Trainyard: the one source of truth that every other package imports.

In reading order: `base` (how models and their schemas behave), `architectures` (the catalogue), `dataset`, `training` and
`execution` (the parts of a spec), `trainingjob`, `trainingservice`, `trainingbudget`, `modelversion` (the custom resources),
`run` (`RunSpec`: all that one attempt of the trainer is told), `resolve` (a job and its service become a RunSpec), `consistency`
(rules between fields, in Python), `report` (what the trainer tells back, `ExitCode`),
`storage` (the layout on S3), `rules` (rules between fields, in CEL), `crd` (renders the CRD YAML), `reference` (renders the docs).
"""

GROUP = "trainyard.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
