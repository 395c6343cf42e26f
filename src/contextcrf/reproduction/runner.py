"""The networks of a study: those that do not exist are trained, those that were stopped go on."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.tuning import best_of, tune_dense, tune_relation_weights
from contextcrf.modeling.config import UNARY, InferenceConfig, ModelConfig
from contextcrf.modeling.merging import merge_potentials, with_config
from contextcrf.modeling.model import ContextCRF, load
from contextcrf.modeling.serialization import CONFIG, fingerprint, save
from contextcrf.reproduction.study import Study, baseline_config, crf_rnn_config
from contextcrf.training.config import FitHeadsJob, FitJob, Job, TrainingConfig
from contextcrf.training.jobs import TUNED, run
from contextcrf.utils.provenance import Provenance
from contextcrf.utils.runtime import default_device

logger = logging.getLogger(__name__)


class Runner:
    """Trains the networks of a study, each once.

    Args:
        study: what is trained, and how.
        data: folder of the data set.
        out: folder for networks and results.
    """

    def __init__(self, study: Study, data: Path, out: Path) -> None:
        self.study, self.data, self.out = study, data, out

    @property
    def inference(self) -> InferenceConfig:
        """The study's inference settings, with the precision of its training."""
        return replace(self.study.inference, precision=self.study.training.precision)

    def unary(self, scales: int = 3) -> ContextCRF:
        """The unary network, of all scales or of the image alone."""
        if scales == 1:
            return self._fit("unary-1scale", replace(self.study.model, scales=(1.0,)), [UNARY])
        return self._fit("unary-3scales", self.study.model, [UNARY])

    def pairwise(self, relation: str) -> ContextCRF:
        """A model that is trained for a relation: with its own network, or heads on the unary's."""
        if self.study.model.shared_trunk:
            self.unary()
            return self._heads("unary-3scales")
        return self._fit(f"pairwise-{relation}", self.study.model, [relation])

    def together(self, dense: bool = False) -> ContextCRF:
        """All potentials, with relation weights that are tuned unless the study names them."""
        model = self._weighted("1unary+2pair", self._joined("unary-3scales", self.unary()))
        return load_here(self._tuned("full", model, dense=True)) if dense else model

    def baseline(self, network: str, dense: bool = False) -> ContextCRF:
        """A competitor, on the same backbone and trained in the same way, with at least two images per step.

        DeepLabV3+ pools each image to a single vector, and its batch normalization needs two of them.
        """
        training = replace(self.study.training, batch_size=max(2, self.study.training.batch_size))
        model = self._fit(network, baseline_config(self.study.model, network), [UNARY], training)
        return load_here(self._tuned(f"{network}+dense", model, dense=True)) if dense else model

    def on_baseline(self, network: str) -> ContextCRF:
        """The pairwise heads of the study on a competitor's features."""
        self.baseline(network)
        return self._weighted(f"{network}+2pair", self._heads(network))

    def crf_rnn(self) -> ContextCRF:
        """FCN-8s, trained through its dense CRF in the last epochs."""
        config = baseline_config(self.study.model, "fcn-8s")
        model = self._fit("crf-rnn-before", config, [UNARY], self._first_epochs())
        return self._last_epochs("crf-rnn", config, [UNARY], self._tuned("crf-rnn-before+dense", model, dense=True))

    def end_to_end(self) -> ContextCRF:
        """All potentials, trained together through mean field and the dense CRF in the last epochs.

        The pairwise potentials are trained first, as those of "1unary+2pair" are.
        """
        before = "end-to-end-before"
        model = self._joined(before, self._fit(before, self.study.model, [UNARY], self._first_epochs()))
        tuned = self._tuned(f"{before}+full", self._weighted(f"{before}+2pair", model), dense=True)
        return self._last_epochs("end-to-end", self.study.model, model.potentials, tuned)

    def tuning_images(self) -> SegmentationDataset:
        """The images that relation weights and dense CRFs are tuned on."""
        return open_dataset(self.data, self.study.tune_split).spread(self.study.tune_images)

    def _joined(self, name: str, unary: ContextCRF) -> ContextCRF:
        """A unary with all pairwise potentials: heads on its trunk, or networks of their own.

        Args:
            name: of the unary's network.
            unary: the unary.
        """
        if self.study.model.shared_trunk:
            return self._heads(name)
        return merge_potentials(unary, {relation: self.pairwise(relation) for relation in self.study.model.relations})

    @property
    def _epochs_through_crf(self) -> int:
        """The last quarter of the epochs, in which some systems are trained through their dense CRF."""
        return max(1, self.study.training.epochs // 4)

    def _first_epochs(self) -> TrainingConfig:
        return replace(self.study.training, epochs=max(1, self.study.training.epochs - self._epochs_through_crf))

    def _last_epochs(self, name: str, config: ModelConfig, potentials: Sequence[str], tuned: Path) -> ContextCRF:
        """Train a tuned model and its dense CRF in the last epochs, at a tenth of the learning rate.

        With the first epochs this is as much training as the other systems have. The dense CRF begins with the tuned
        parameters, and has five iterations.
        """
        training = crf_rnn_config(self.study.training)
        training = replace(training, epochs=self._epochs_through_crf, lr=self.study.training.lr / 10)
        inference = load(tuned).inference
        inference = replace(inference, dense={**inference.dense, "iterations": 5})
        return self._fit(name, replace(config, learned_dense=True), potentials, training, tuned, inference)

    def _fit(
        self,
        name: str,
        config: ModelConfig,
        potentials: Sequence[str],
        training: TrainingConfig | None = None,
        init: Path | None = None,
        inference: InferenceConfig | None = None,
    ) -> ContextCRF:
        inference = inference or self._untuned
        job = FitJob(
            data=self.data,
            out=self._network(name),
            model=config,
            training=replace(training or self.study.training, potentials=list(potentials)),
            inference=inference,
            train_split=self.study.train_split,
            val_split=None,
            pretrained=self.study.pretrained,
            init=None if init is None else str(init),
        )
        return self._train(job, inference)

    def _heads(self, name: str) -> ContextCRF:
        job = FitHeadsJob(
            model=str(self._network(name)),
            data=self.data,
            out=self._network(f"{name}-heads"),
            training=self.study.heads,
            train_split=self.study.train_split,
            copies=self.study.copies,
            # That of the study's own network, since competitors have finer maps.
            graph_stride=self.study.model.graph_stride or self.study.model.stride,
        )
        return self._train(job, self._untuned)

    @property
    def _untuned(self) -> InferenceConfig:
        return replace(self.inference, relation_weights={})

    def _train(self, job: Job, inference: InferenceConfig) -> ContextCRF:
        if not (job.out / "model" / CONFIG).exists():
            logger.info("  training network %s", job.out.name)
        model = load_here(run(job))
        # A network that was trained before the study's inference settings were changed has the old ones.
        return with_config(model, model.config, inference)

    def _network(self, name: str) -> Path:
        return self.out / "networks" / name

    def _weighted(self, name: str, model: ContextCRF) -> ContextCRF:
        """A model with the relation weights of the study, or with tuned ones if the study names none."""
        inference = replace(model.inference, relation_weights=self.study.inference.relation_weights)
        model = with_config(model, model.config, inference)
        return model if inference.relation_weights else load_here(self._tuned(name, model, dense=False))

    def _tuned(self, name: str, model: ContextCRF, dense: bool) -> Path:
        """The folder of a model with the relation weights or the dense CRF that do best on the tuning split."""
        data = self.tuning_images()
        folder = self.out / "tuned" / f"{name}-{measurement(model, data).digest[:8]}"
        if not (folder / CONFIG).exists():
            logger.info("  tuning %s of %s", "the dense CRF" if dense else "the relation weights", name)
            best = best_of((tune_dense if dense else tune_relation_weights)(model, data))
            entry = {"data": self.data.name, "split": self.study.tune_split, "images": len(data)}
            entry |= {"mean_iou": best.mean_iou, "settings": dict(best.settings)}
            kind = "tune-dense" if dense else TUNED
            save(model, folder, {**model.metadata, kind: entry}, inference=best.inference)
        return folder


def load_here(model: Path) -> ContextCRF:
    """A saved model on the device of this machine."""
    return load(model).to(default_device())


def measurement(model: ContextCRF, data: SegmentationDataset) -> Provenance:
    """What decides a measurement: weights, inference settings, images."""
    return Provenance.of(
        model=fingerprint(model),
        inference=model.inference,
        folder=data.pairs[0][0].parent,
        images=[path.name for path, _ in data.pairs],
    )
