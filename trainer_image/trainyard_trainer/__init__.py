"""The trainer: one process per GPU turns a `RunSpec` into a model version.

In reading order: `errors` (one class per exit code), `records` (what a dataset is once it was read), `store` (S3 and `file://`),
`prepare` (fetch, check, split: the data of an attempt in one call), below it `fetch`, `voc` (zip or folder to records, with
`voc_source`, `voc_xml`, `voc_json`, `voc_image`, `voc_boxes`, `report_data`), `split`, `pixels` (the decoded images in memory);
then `batch`, `data`, `augment` (what is drawn), `paint` and, on a GPU, `device_paint` (batches for the loop). `synth` makes small datasets.
Only `batch`, `data` and the painters need torch.

What comes out: `report` (told while it runs, by `poster`), `mirror` (log, metrics and TensorBoard's `events` on storage), `export` and `publish` (the
version), `runreport` (the page, made of `page`, `boxpage`, `secondlook`, `charts` and `markup`), `versions` and `library` (what is on
storage), `predictor` (a version's ONNX file as a function). `private` makes a trainer of somebody else's network.

Several processes: `place` (which one this is), `processes` (their supervisor), `gang` (the supervisors of several nodes), `restart` (one
that failed is started again in its pod), `ranks` (what they agree on), `exchange` (how those of one node do, on CPUs)
and `sharing` (what they share).

How the loop uses the data:

    storage = Storage.open(spec.secrets_path, "dataset", stop=stop)       # also "output", "service"
    prepared = prepare(spec.dataset, spec.task, storage, cache_path, image_size=(width, height), seed=…, stop=stop, progress=…)
    prepared.dataset.labels / .records / .digest / .findings; prepared.sides.train / .validation / .test; prepared.summary()
    batches = TrainBatches(prepared, size=(width, height), batch_size=8, augmentation=spec.augmentation, seed=…, resize=…)
    batch = batches.batch(step, steps)                                     # steps: the planned number of them
    for batch in EvalBatches(prepared, Side.VALIDATION, size=…, batch_size=…, resize=…): batch.to_original(i, boxes)

and storage:

    storage.head(uri) -> Stat(size, etag) | None
    storage.get_bytes(uri) -> bytes; storage.get_range(uri, start, length, etag=None) -> bytes
    storage.download(uri, path, etag=None, progress=silent) -> Stat
    storage.put_bytes(uri, data) -> None; storage.upload(path, uri, progress=silent) -> None      # atomic
    storage.put_if_absent(uri, data) -> bool; storage.honours_if_absent(prefix) -> bool
    storage.list(prefix) -> list[Entry(uri, size, etag)]; storage.delete(uris) -> None
"""
