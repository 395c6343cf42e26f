"""The runner of a study, which trains missing networks and resumes interrupted trainings."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.layouts import open_dataset
from contextcrf.evaluation.tuning import TUNED, best_of, tune_dense, tune_relation_weights
from contextcrf.modeling.config import UNARY, InferenceConfig, ModelConfig
from contextcrf.modeling.merging import merge_potentials, with_config
from contextcrf.modeling.model import ContextCRF, load
from contextcrf.modeling.serialization import CONFIG, fingerprint, save
from contextcrf.reproduction.study import Study, baseline_config, crf_rnn_config, end_to_end_config, with_learned_crf
from contextcrf.training.config import FitHeadsJob, FitJob, Job, TrainingConfig
from contextcrf.training.jobs import run
from contextcrf.utils.provenance import Provenance
from contextcrf.utils.runtime import default_device

logger = logging.getLogger(__name__)


class Runner:
    """A runner that trains the networks of a study, each of them once.

    Args:
        study: configs of the reproduction.
        data: folder of the data set.
        out: folder for the networks and the results.

    Example:
        >>> from contextcrf.data.synthetic import write_scenes
        >>> from contextcrf.reproduction import open_study
        >>> data = write_scenes("scenes", train=3, val=1, height=64, width=96)
        >>> runner = Runner(open_study("camvid"), data, Path("tables"))
        >>> len(runner.tuning_images())
        3
    """

    def __init__(self, study: Study, data: Path, out: Path) -> None:
        self.study, self.data, self.out = study, data, out

    @property
    def inference(self) -> InferenceConfig:
        """The inference settings of the study, with the precision of its training."""
        return replace(self.study.inference, precision=self.study.training.precision)

    def unary(self, scales: int = 3) -> ContextCRF:
        """Return the unary network. Its input has one scale if `scales` is 1, and the scales of the study otherwise."""
        if scales == 1:
            return self._fit("unary-1scale", replace(self.study.model, scales=(1.0,)), [UNARY])
        return self._fit("unary-3scales", self.study.model, [UNARY])

    def pairwise(self, relation: str) -> ContextCRF:
        """Return a model that is trained for a relation: its own network, or heads on the trunk of the unary."""
        if self.study.model.shared_trunk:
            self.unary()
            return self._heads("unary-3scales")
        return self._fit(f"pairwise-{relation}", self.study.model, [relation])

    def together(self, dense: bool = False) -> ContextCRF:
        """Return all potentials in one model. Relation weights that the study does not set are tuned."""
        model = self._weighted("1unary+2pair", self._joined("unary-3scales", self.unary()))
        return load_here(self._tuned("full", model, dense=True)) if dense else model

    def baseline(self, network: str, dense: bool = False) -> ContextCRF:
        """Return a competitor with the backbone of the study.

        It is trained with the settings of the study, but with at least two images per step, because DeepLabV3+ pools
        each image to one vector, and its batch normalization needs two vectors.
        """
        training = replace(self.study.training, batch_size=max(2, self.study.training.batch_size))
        model = self._fit(network, baseline_config(self.study.model, network), [UNARY], training)
        return load_here(self._tuned(f"{network}+dense", model, dense=True)) if dense else model

    def on_baseline(self, network: str) -> ContextCRF:
        """Return the pairwise heads of the study on the features of a competitor."""
        self.baseline(network)
        return self._weighted(f"{network}+2pair", self._heads(network))

    def crf_rnn(self) -> ContextCRF:
        """Return FCN-8s, trained through its dense CRF in the last epochs."""
        tuned = self._before_crf_rnn()
        config = replace(load(tuned).config, learned_dense=True)
        training = self._last_epochs(crf_rnn_config(self.study.training))
        return self._through_crf("crf-rnn", config, [UNARY], training, tuned)

    def crf_rnn_with_pairs(self) -> ContextCRF:
        """Return CRF-as-RNN with pairwise potentials, which are heads on its features before the last epochs.

        It has the first epochs and the dense CRF of `crf_rnn`, and is trained through the whole system on as many
        images.
        """
        tuned = self._before_crf_rnn()
        inference = replace(load(tuned).inference, relation_weights=self.study.inference.relation_weights)
        model = self._heads("crf-rnn-before")
        folder = self.out / "tuned" / f"crf-rnn-before+2pair-{fingerprint(model)[:8]}"
        if not (folder / CONFIG).exists():
            save(model, folder, model.metadata, inference=inference)
        training = self._last_epochs(end_to_end_config(self.study.training))
        return self._through_crf("crf-rnn+2pair", with_learned_crf(model.config), None, training, folder)

    def _before_crf_rnn(self) -> Path:
        """Return the folder of FCN-8s after the first epochs, with a tuned dense CRF."""
        name, config = "crf-rnn-before", baseline_config(self.study.model, "fcn-8s")
        return self._tuned(f"{name}+dense", self._fit(name, config, [UNARY], self._first_epochs()), dense=True)

    def end_to_end(self) -> ContextCRF:
        """Return all potentials, trained together through mean field and the dense CRF in the last epochs.

        Before that, the pairwise potentials are trained as for the row "1unary+2pair".
        """
        before = "end-to-end-before"
        model = self._joined(before, self._fit(before, self.study.model, [UNARY], self._first_epochs()))
        tuned = self._tuned(f"{before}+full", self._weighted(f"{before}+2pair", model), dense=True)
        training = self._last_epochs(end_to_end_config(self.study.training))
        return self._through_crf("end-to-end", with_learned_crf(self.study.model), None, training, tuned)

    def tuning_images(self) -> SegmentationDataset:
        """Return the images on which relation weights and dense CRFs are tuned."""
        return open_dataset(self.data, self.study.tune_split).spread(self.study.tune_images)

    def _joined(self, name: str, unary: ContextCRF) -> ContextCRF:
        """Return a unary with all pairwise potentials: heads on its trunk, or separate networks.

        Args:
            name: name of the network of the unary.
            unary: the unary.
        """
        if self.study.model.shared_trunk:
            return self._heads(name)
        return merge_potentials(unary, {relation: self.pairwise(relation) for relation in self.study.model.relations})

    @property
    def _epochs_through_crf(self) -> int:
        """The number of last epochs, a quarter, in which some systems are trained through their dense CRF."""
        return max(1, self.study.training.epochs // 4)

    def _first_epochs(self) -> TrainingConfig:
        """Return the config of the epochs before the training through the dense CRF."""
        return replace(self.study.training, epochs=max(1, self.study.training.epochs - self._epochs_through_crf))

    def _last_epochs(self, config: TrainingConfig) -> TrainingConfig:
        """Return the config of the epochs through the dense CRF, with a tenth of the learning rate.

        The first and the last epochs together are as many as those of the other systems.
        """
        return replace(config, epochs=self._epochs_through_crf, lr=config.lr / 10)

    def _through_crf(
        self, name: str, config: ModelConfig, potentials: Sequence[str] | None, training: TrainingConfig, tuned: Path
    ) -> ContextCRF:
        """Train a tuned model and its dense CRF, which starts from the tuned parameters and has five iterations."""
        inference = load(tuned).inference
        inference = replace(inference, dense={**inference.dense, "iterations": 5})
        return self._fit(name, config, potentials, training, tuned, inference)

    def _fit(
        self,
        name: str,
        config: ModelConfig,
        potentials: Sequence[str] | None,
        training: TrainingConfig | None = None,
        init: Path | None = None,
        inference: InferenceConfig | None = None,
    ) -> ContextCRF:
        """Train a network end to end."""
        inference = inference or self._untuned
        job = FitJob(
            data=self.data,
            out=self._network(name),
            model=config,
            training=replace(training or self.study.training, potentials=potentials),
            inference=inference,
            train_split=self.study.train_split,
            val_split=None,
            pretrained=self.study.pretrained,
            init=None if init is None else str(init),
        )
        return self._train(job, inference)

    def _heads(self, name: str) -> ContextCRF:
        """Train pairwise heads on the trunk of a network."""
        job = FitHeadsJob(
            model=str(self._network(name)),
            data=self.data,
            out=self._network(f"{name}-heads"),
            training=self.study.heads,
            train_split=self.study.train_split,
            copies=self.study.copies,
            # The graph stride of the study's own network, since competitors have finer feature maps.
            graph_stride=self.study.model.graph_stride or self.study.model.stride,
        )
        return self._train(job, self._untuned)

    @property
    def _untuned(self) -> InferenceConfig:
        """The inference settings of the study without its relation weights."""
        return replace(self.inference, relation_weights={})

    def _train(self, job: Job, inference: InferenceConfig) -> ContextCRF:
        """Run a job, and return its network with the given inference settings."""
        if not (job.out / "model" / CONFIG).exists():
            logger.info("  Training the network %s", job.out.name)
        model = load_here(run(job))
        # The network may have been trained before the inference settings of the study were changed.
        return with_config(model, model.config, inference)

    def _network(self, name: str) -> Path:
        """Return the folder of a network."""
        return self.out / "networks" / name

    def _weighted(self, name: str, model: ContextCRF) -> ContextCRF:
        """Return a model with the relation weights of the study, or with tuned weights if the study sets none."""
        inference = replace(model.inference, relation_weights=self.study.inference.relation_weights)
        model = with_config(model, model.config, inference)
        return model if inference.relation_weights else load_here(self._tuned(name, model, dense=False))

    def _tuned(self, name: str, model: ContextCRF, dense: bool) -> Path:
        """Tune the relation weights or the dense CRF of a model, and return the folder of the tuned model."""
        data = self.tuning_images()
        folder = self.out / "tuned" / f"{name}-{measurement(model, data).digest[:8]}"
        if not (folder / CONFIG).exists():
            logger.info("  Tuning %s of %s", "the dense CRF" if dense else "the relation weights", name)
            best = best_of((tune_dense if dense else tune_relation_weights)(model, data))
            entry = {"data": self.data.name, "split": self.study.tune_split, "images": len(data)}
            entry |= {"mean_iou": best.mean_iou, "settings": dict(best.settings)}
            kind = "tune-dense" if dense else TUNED
            save(model, folder, {**model.metadata, kind: entry}, inference=best.inference)
        return folder


def load_here(model: Path) -> ContextCRF:
    """Load a model to the default device of this machine."""
    return load(model).to(default_device())


def measurement(model: ContextCRF, data: SegmentationDataset) -> Provenance:
    """Return the record of everything that determines an evaluation: weights, inference settings and images."""
    return Provenance.of(
        model=fingerprint(model),
        inference=model.inference,
        folder=data.pairs[0][0].parent,
        images=[path.name for path, _ in data.pairs],
    )
