"""The profile objective: predict at every residue what homologs have there, beside the hidden residues."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

import protembed
from protembed.backends.load import ModelOptions
from protembed.backends.onnx.export import ExportOptions, export_model
from protembed.checkpoints import native
from protembed.errors import ModelError, TrainingError, UsageError
from protembed.models.config import ModelCard
from protembed.models.packing import Packed
from protembed.models.protein_model import ProteinModel
from protembed.sequences.alphabet import PROTEMBED, STANDARD_RESIDUES
from protembed.training.corpus.corpus import open_corpus, prepare_corpus
from protembed.training.corpus.packing import Cursor
from protembed.training.curve import draw_curve
from protembed.training.optimizer import build_optimizers
from protembed.training.pretrain.batches import Shape
from protembed.training.pretrain.config import ModelSection, ObjectiveSection, TrainSection, load_config, make_card
from protembed.training.pretrain.perplexity import score_proteins
from protembed.training.pretrain.pretrain import Trainer
from protembed.training.pretrain.profile import profile_targets
from protembed.training.pretrain.start import pseudocounts
from tests.conftest import SEQUENCES, write_fasta
from tests.training.test_parallel import Runs, finish, start, wait_for_step
from tests.training.test_parallel import losses as losses_of
from tests.training.test_pretrain import TOML, losses, trainer_of

PROFILE = ["objective.profile=1.0"]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A run on a corpus in which four proteins have homologs."""
    source = write_fasta(tmp_path / "train.fasta", SEQUENCES)
    names = list(SEQUENCES)
    lines = []
    for query, target in ((0, 1), (0, 2), (1, 3), (2, 4), (4, 2)):
        pair = [SEQUENCES[names[number]][4:60] for number in (query, target)]
        identity = sum(a == b for a, b in zip(*pair, strict=True)) / 56
        lines.append(f"{names[query]}\t{names[target]}\t{identity:.3f}\t5\t60\t5\t60\t1E-5\t56M\n")
    hits = tmp_path / "hits.tsv"
    hits.write_text("".join(lines))
    held = write_fasta(tmp_path / "valid.fasta", {"v1": "MKTAYIAKQRQISFVKSHFSRQ", "v2": "MLKQVEIFTDGSCLGNPG"})
    (tmp_path / "more.tsv").write_text(f"v1\t{names[0]}\t0.1\t1\t10\t1\t10\t1E-5\t10M\n")
    files = [str(hits), str(tmp_path / "more.tsv")]
    prepare_corpus([str(source)], tmp_path / "corpus", PROTEMBED, valid=[str(held)], homologs=files)
    path = tmp_path / "run.toml"
    text = TOML.format(folder=tmp_path)
    path.write_text(
        "".join(line for line in text.splitlines(keepends=True) if not line.startswith(("train =", "valid =")))
    )
    return path


class TestTargets:
    tokens = PROTEMBED.encode("MKX")
    background = np.linspace(0.01, 0.09, 20).astype(np.float32)

    def targets(self, counts: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return profile_targets(self.tokens, counts, PROTEMBED, self.background)

    def test_own_residue_homologs_and_background(self) -> None:
        counts = np.zeros((5, 20), np.float32)
        counts[1, 3], counts[3, 7] = 1.5, 0.5
        found = self.targets(counts)
        wanted = self.background.astype(np.float64) * np.ones((5, 1))
        wanted[1, STANDARD_RESIDUES.index("M")] += 1
        wanted[1, 3] += 1.5
        wanted[2, STANDARD_RESIDUES.index("K")] += 1
        wanted[3, 7] += 0.5
        np.testing.assert_allclose(found[1:4], (wanted / wanted.sum(axis=1, keepdims=True))[1:4], rtol=1e-6)
        assert not found[[0, 4]].any(), "special tokens are not asked for"

    def test_a_protein_without_homologs_keeps_its_own_residues_and_x_is_not_asked_for(self) -> None:
        found = self.targets(np.zeros((5, 20), np.float32))
        assert found.argmax(axis=1)[1:3].tolist() == [STANDARD_RESIDUES.index(letter) for letter in "MK"]
        assert not found[3].any()


class TestLoss:
    def test_it_is_soft_cross_entropy_at_all_residues(self, config_file: Path) -> None:
        """Also where the input is hidden; special tokens do not count."""
        trainer = trainer_of(load_config(config_file, [*PROFILE, "mask.rate=0.5", "train.clip=1e9"]))
        step = next(trainer.steps.after(Cursor(), 0))
        (batch,) = step.batches
        tokens, layout, places, targets, profile = batch.on(torch.device("cpu"))
        assert profile is not None
        hidden = trainer.module.model(tokens, layout)
        masked = functional.cross_entropy(trainer.module.model.logits(hidden[places]), targets)
        asked = profile.sum(dim=1) > 0
        assert asked.sum().item() == len(tokens) - 2 * len(batch.lengths) == batch.profiled
        scores = trainer.module.model.profile_logits(hidden)[asked]
        profiles = functional.cross_entropy(scores, profile[asked])  # of probabilities
        (masked + profiles).backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in trainer.module.parameters() if p.grad is not None]
        expected = torch.nn.utils.get_total_norm(gradients).item()
        trainer.module.zero_grad()
        (found, found_profile), norm, _ = trainer._update(step, 0.0, False)
        assert (found, found_profile) == pytest.approx((masked.item(), profiles.item()), abs=1e-5)
        assert norm == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize(
        ("words", "share"), [(["objective.masked=0", *PROFILE], 0.0), (["objective.masked=3"], 3.0)]
    )
    def test_weights(self, config_file: Path, words: list[str], share: float) -> None:
        norms = []
        for settings in (words, []):
            trainer = trainer_of(load_config(config_file, [*settings, "train.clip=1e9"]))
            step = next(trainer.steps.after(Cursor(), 0))
            loss, _ = trainer._loss(step.batches[0], 10, 10)
            loss.backward()  # type: ignore[no-untyped-call]
            bias = trainer.module.model.mlm_head.bias.grad
            assert bias is not None
            norms.append(float(bias.norm()))
        assert norms[0] == pytest.approx(share * norms[1], rel=1e-4)

    def test_the_weight_of_profiles(self, config_file: Path) -> None:
        norms = []
        for weight in (1.0, 2.5):
            trainer = trainer_of(load_config(config_file, [f"objective.profile={weight}"]))
            loss, _ = trainer._loss(next(trainer.steps.after(Cursor(), 0)).batches[0], 10, 10)
            loss.backward()  # type: ignore[no-untyped-call]
            bias = trainer.module.model.profile_head.bias.grad
            assert bias is not None
            norms.append(float(bias.norm()))
        assert norms[1] == pytest.approx(2.5 * norms[0], rel=1e-4)

    def test_accumulated_batches_weigh_by_their_residues(self, config_file: Path) -> None:
        """The gradient is the mean over all residues of a step, however they are divided."""
        trainer = trainer_of(load_config(config_file, [*PROFILE, "train.accumulate=2", "train.clip=1e9"]))
        step = next(trainer.steps.after(Cursor(), 0))
        asked = [batch.profiled for batch in step.batches]
        assert len(asked) == 2
        assert asked[0] != asked[1]
        sums = torch.zeros(2)
        for batch in step.batches:
            parts = trainer.module(*batch.on(torch.device("cpu"))).split([batch.count, len(batch.question.tokens)])
            sums = sums + torch.stack([part.sum() for part in parts])
        loss = sums[0] / sum(batch.count for batch in step.batches) + sums[1] / sum(asked)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in trainer.module.parameters() if p.grad is not None]
        expected = torch.nn.utils.get_total_norm(gradients).item()
        trainer.module.zero_grad()
        found, norm, _ = trainer._update(step, 0.0, False)
        assert sum(found) == pytest.approx(loss.item(), abs=1e-5)
        assert norm == pytest.approx(expected, abs=1e-5)

    def test_filled_batches_have_the_same_loss(self, config_file: Path) -> None:
        trainer = trainer_of(load_config(config_file, PROFILE))
        (batch,) = next(trainer.steps.after(Cursor(), 0)).batches
        shape = Shape(tokens=300, places=45, longest=102, pad_id=PROTEMBED.pad_id)
        filled = shape.fill(batch)
        assert filled.profiled == batch.profiled
        inputs = filled.on(torch.device("cpu"))
        kept = Packed([length for length in filled.lengths if length])
        with torch.no_grad():
            expected = trainer.module(*batch.on(torch.device("cpu"))).sum().item()
            found = trainer.module(inputs[0], kept, *inputs[2:]).sum().item()
        assert found == pytest.approx(expected, abs=1e-3)


def test_targets_are_of_the_true_residues_where_the_input_is_hidden(config_file: Path) -> None:
    words = [*PROFILE, "mask.rate=1.0", "mask.masked=1.0", "mask.random=0.0", "objective.background=0.0"]
    trainer = trainer_of(load_config(config_file, words))
    (batch,) = next(trainer.steps.after(Cursor(), 0)).batches
    assert batch.profile is not None
    own = np.zeros_like(batch.profile, dtype=bool)
    own[batch.question.places, [list(PROTEMBED.standard_ids).index(row) for row in batch.question.targets]] = True
    assert (batch.question.tokens[batch.question.places] == PROTEMBED.mask_id).all()
    assert (batch.profile[own] > 0).all()


def test_the_background_is_the_composition_of_the_corpus_times_its_weight(config_file: Path) -> None:
    corpus = open_corpus(config_file.parent / "corpus", PROTEMBED)
    read = "".join([*SEQUENCES.values(), "MKTAYIAKQRQISFVKSHFSRQ", "MLKQVEIFTDGSCLGNPG"])
    counts = np.array([read.count(letter) for letter in STANDARD_RESIDUES], dtype=float)
    np.testing.assert_allclose(corpus.background, counts / counts.sum(), rtol=1e-5)
    found = pseudocounts(corpus, ObjectiveSection(profile=1.0, background=3.0))
    assert found is not None
    np.testing.assert_allclose(found, 3 * counts / counts.sum(), rtol=1e-5)
    assert pseudocounts(corpus, ObjectiveSection()) is None


def test_profiles_of_validation_proteins_are_cut_with_them(config_file: Path) -> None:
    trainer = trainer_of(load_config(config_file, [*PROFILE, "data.max_residues=7"]))
    assert trainer.valid.profiles is not None
    assert [len(profile) for profile in trainer.valid.profiles] == [9, 9]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_five_and_five_steps_equal_ten(config_file: Path, tmp_path: Path, optimizer: str) -> None:
    """Stopped after the checkpoint at step 5 and started again: the same bits as an undisturbed run."""
    words = [*PROFILE, f"train.optimizer={optimizer}"]
    undisturbed = [(report.loss, report.profile_loss) for report in trainer_of(load_config(config_file, words)).run()]
    second = load_config(config_file, [*words, f"train.out={tmp_path}/second"])
    trainer = trainer_of(second)
    for report in trainer.run():
        if report.step == 7:
            trainer.checkpoints.finish()
            break
    assert [(report.loss, report.profile_loss) for report in trainer_of(second).run()] == undisturbed[5:]
    one, two = (protembed.load(tmp_path / run / "model.safetensors").card.sha256 for run in ("run", "second"))
    assert one == two


def test_both_losses_fall_and_are_reported(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file, [*PROFILE, "train.steps=60", "train.evaluate_every=30"])
    reports = list(trainer_of(config).run())
    for name in ("loss", "profile_loss"):
        values = [getattr(report, name) for report in reports]
        assert np.mean(values[-10:]) < np.mean(values[:5]) - 0.2
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["valid_profile"] is not None] == [30, 60]
    assert f"profile {reports[0].profile_loss:.3f}" in str(reports[0])
    assert "valid profile" in str(reports[-1])
    assert "curve.png" in draw_curve(tmp_path / "run")


def test_the_evaluation_is_the_cross_entropy_of_held_out_profiles(config_file: Path) -> None:
    trainer = trainer_of(load_config(config_file, PROFILE))
    corpus = open_corpus(config_file.parent / "corpus", PROTEMBED)
    assert corpus.valid.counts(0).any(), "a validation protein has homologs"
    with torch.no_grad():
        for parameter in trainer.module.parameters():
            parameter.zero_()
    perplexity, profile = trainer._evaluate()
    assert perplexity == pytest.approx(len(PROTEMBED), rel=1e-5)
    assert profile == pytest.approx(math.log(20), rel=1e-5)
    bias = trainer.module.model.profile_head.bias
    with torch.no_grad():
        bias[STANDARD_RESIDUES.index("K")] = 2.0
    share = np.log(19 + math.exp(2.0))
    targets = np.concatenate(list(trainer.valid.profiles or []))
    asked = targets[targets.any(axis=1)]
    wanted = np.mean(share - 2.0 * asked[:, STANDARD_RESIDUES.index("K")])
    assert trainer._evaluate()[1] == pytest.approx(float(wanted), rel=1e-5)


def test_however_validation_proteins_are_divided_the_same_residues_are_scored(config_file: Path) -> None:
    """Perplexity and profiles for 1, 2 and 3 ranks: sums over the parts are the sums over the whole."""
    trainer = trainer_of(load_config(config_file, PROFILE))
    proteins = [PROTEMBED.encode(sequence) for sequence in SEQUENCES.values()]
    device = torch.device("cpu")

    def scored(numbers: range) -> list[tuple[int, int, float]]:
        found = score_proteins(trainer.module, PROTEMBED, proteins, device, passes=1, numbers=numbers)
        return [(item.index, item.count, item.loss) for item in found]

    whole = sorted(scored(range(6)))
    for ranks in (2, 3):
        parts = sorted(itertools.chain.from_iterable(scored(range(rank, 6, ranks)) for rank in range(ranks)))
        assert [part[:2] for part in parts] == [item[:2] for item in whole]
        np.testing.assert_allclose([part[2] for part in parts], [item[2] for item in whole], rtol=1e-5)


class TestConfig:
    def test_the_default_is_masked_residues_alone(self, config_file: Path, tmp_path: Path) -> None:
        trainer = trainer_of(load_config(config_file))
        assert trainer.module.model.profile_head is None
        reports = list(trainer.run())
        assert reports[0].profile_loss is reports[-1].valid_profile is None
        plain = trainer_of(load_config(config_file, [f"train.out={tmp_path}/b", "objective.masked=1.0"]))
        assert [report.loss for report in plain.run()] == [report.loss for report in reports]
        assert "profile_head" not in trainer.card.to_dict(), "files are those of older versions"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["objective.masked=0"], "both 0"),
            (["objective.masked=-1"], r"\[objective\]: masked is -1.0"),
            (["objective.profile=inf"], "infinite"),
            (["objective.profile=nan"], "profile is nan"),
            (["objective.depth=1"], "unknown key 'depth'"),
        ],
    )
    def test_mistakes_are_named(self, config_file: Path, words: list[str], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            load_config(config_file, words)

    def test_profiles_need_homologs(self, config_file: Path, tmp_path: Path) -> None:
        prepare_corpus(
            [str(tmp_path / "train.fasta")],
            tmp_path / "bare",
            PROTEMBED,
            valid=[str(tmp_path / "valid.fasta")],
        )
        with pytest.raises(TrainingError, match="bare: has no homologs") as error:
            trainer_of(load_config(config_file, [*PROFILE, f"data.corpus={tmp_path}/bare"]))
        assert "--homologs" in error.value.hint

    def test_a_corpus_is_made_with_the_homologs_of_the_configuration(self, config_file: Path, tmp_path: Path) -> None:
        words = [
            f"data.{name}={tmp_path}/{file}" for name, file in (("train", "train.fasta"), ("valid", "valid.fasta"))
        ]
        words += [f"data.homologs=['{tmp_path}/hits.tsv']", f"data.corpus={tmp_path}/made"]
        assert trainer_of(load_config(config_file, [*PROFILE, *words])).store.homologs

    def test_another_objective_is_another_run(self, config_file: Path) -> None:
        list(trainer_of(load_config(config_file, [*PROFILE, "train.steps=5"])).run())
        with pytest.raises(TrainingError, match=r"another \[objective\]|another \[model\]"):
            trainer_of(load_config(config_file, ["objective.profile=0.5"]))
        with pytest.raises(TrainingError, match=r"another \[objective\]"):
            trainer_of(load_config(config_file))

    def test_a_run_from_before_there_was_a_choice_goes_on(self, config_file: Path, tmp_path: Path) -> None:
        list(trainer_of(load_config(config_file, ["train.steps=5"])).run())
        path = tmp_path / "run" / "step_00000005" / "progress.json"
        saved = json.loads(path.read_text())
        del saved["config"]["objective"]
        path.write_text(json.dumps(saved))
        assert trainer_of(load_config(config_file)).progress.step == 5
        with pytest.raises(TrainingError, match=r"another \[objective\]"):
            trainer_of(load_config(config_file, PROFILE))


class TestGrowth:
    def grown(self, config_file: Path, first: list[str], second: list[str]) -> tuple[ProteinModel, Trainer]:
        folder = config_file.parent
        list(trainer_of(load_config(config_file, [*first, "train.steps=3"])).run())
        start_from = f"train.start_from={folder}/run/model.safetensors"
        small = native.load(folder / "run" / "model.safetensors", device=torch.device("cpu"))
        return small, trainer_of(load_config(config_file, [*second, start_from, f"train.out={folder}/second"]))

    @pytest.mark.parametrize("larger", [[], ["model.n_layers=3", "model.d_ff=96"]])
    def test_a_model_without_a_profile_head_gets_one(self, config_file: Path, larger: list[str]) -> None:
        small, trainer = self.grown(config_file, [], [*PROFILE, *larger])
        assert trainer.module.model.profile_head.weight.std() > 0.01
        self.same_function(small, trainer.module.model)
        before = trainer.module.model.profile_head.weight.clone()
        list(trainer.run())
        assert not torch.equal(before, trainer.module.model.profile_head.weight)

    @pytest.mark.parametrize("larger", [[], ["model.n_layers=3", "model.d_ff=96"]])
    def test_a_profile_head_stays(self, config_file: Path, larger: list[str]) -> None:
        small, trainer = self.grown(config_file, PROFILE, [*PROFILE, *larger])
        assert small.profile_head is not None
        assert torch.equal(small.profile_head.weight, trainer.module.model.profile_head.weight)
        self.same_function(small, trainer.module.model)

    def test_or_is_left_out(self, config_file: Path) -> None:
        small, trainer = self.grown(config_file, PROFILE, [])
        assert trainer.module.model.profile_head is None
        self.same_function(small, trainer.module.model)

    def same_function(self, small: ProteinModel, large: ProteinModel) -> None:
        tokens = torch.from_numpy(PROTEMBED.encode(SEQUENCES["sp|P01308|INS_HUMAN"]))
        layout = Packed([len(tokens)])
        with torch.no_grad():
            torch.testing.assert_close(large.logits(large(tokens, layout)), small.logits(small(tokens, layout)))

    def test_other_weights_are_drawn_as_without_it(self) -> None:
        section = ModelSection(name="x", d_model=16, n_layers=1, n_heads=2, d_ff=16)
        drawn = []
        for profile in (False, True):
            model = ProteinModel(make_card(section, profile=profile))
            model.initialise(7)
            drawn.append(model.state_dict())
        assert all(torch.equal(tensor, drawn[1][name]) for name, tensor in drawn[0].items())
        assert set(drawn[1]) - set(drawn[0]) == {"profile_head.weight", "profile_head.bias"}


def test_the_profile_head_does_not_decay_and_is_not_orthogonalised() -> None:
    model = ProteinModel(make_card(ModelSection(name="x", d_model=16, n_layers=1, n_heads=2, d_ff=16), profile=True))
    muon, adamw = build_optimizers(model.named_parameters(), TrainSection(out="", steps=1, optimizer="muon"))
    head = model.profile_head
    assert head is not None
    assert any(parameter is head.weight for parameter in adamw.param_groups[0]["params"])
    assert not any(parameter is head.weight for parameter in muon.param_groups[0]["params"])
    assert adamw.param_groups[0]["weight_decay"] == 0


class TestModel:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        model = ProteinModel(
            make_card(ModelSection(name="p", d_model=32, n_layers=2, n_heads=4, d_ff=64), profile=True)
        )
        model.initialise(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.15)
        native.save(model, tmp_path / "p.safetensors")
        return tmp_path / "p.safetensors"

    def test_profiles_are_probabilities_by_residue(self, file: Path) -> None:
        model = protembed.load(file, backend="torch")
        sequences = list(SEQUENCES.values())
        profiles = model.profile(sequences)
        for sequence, profile in zip(sequences, profiles, strict=True):
            assert profile.shape == (len(sequence), 20)
            assert profile.dtype == np.float32
            np.testing.assert_allclose(profile.sum(axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(model.profile([sequences[1]])[0], profiles[1], atol=1e-5)
        loaded = native.load(file, device=torch.device("cpu"))
        tokens = torch.from_numpy(PROTEMBED.encode(sequences[0]))
        with torch.no_grad():
            scores = loaded.profile_logits(loaded(tokens, Packed([len(tokens)]))).softmax(dim=-1)
        np.testing.assert_allclose(profiles[0], scores[1:-1].numpy(), atol=1e-5)

    def test_a_model_without_one_says_so(self, model_file: Path) -> None:
        with pytest.raises(ModelError, match="tiny has no profile head"):
            protembed.load(model_file, backend="torch").profile(["MKTAY"])
        with pytest.raises(ModelError, match="has no profile head"):
            protembed.load().profile(["MKTAY"])

    def test_the_exported_file_computes_it(self, file: Path, tmp_path: Path) -> None:
        export_model(ModelOptions(model=str(file), device="cpu"), ExportOptions(out=tmp_path / "p.onnx"))
        by_onnx = protembed.load(tmp_path / "p.onnx").profile(list(SEQUENCES.values()))
        by_torch = protembed.load(file, backend="torch").profile(list(SEQUENCES.values()))
        for one, other in zip(by_onnx, by_torch, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)

    def test_cards_of_models_without_one_are_unchanged(self, file: Path) -> None:
        card = native.read_card(file)
        assert card.profile_head
        assert ModelCard.from_dict(card.to_dict()) == card
        plain = make_card(ModelSection(name="x", d_model=16, n_layers=1, n_heads=2, d_ff=16))
        assert not {"profile_head"} & set(plain.to_dict())
        assert not ModelCard.from_dict(plain.to_dict()).profile_head


class TestProcesses:
    """Two processes, whole models or shards: the losses of one."""

    def losses(self, config: Path, run: str) -> list[tuple[float, float]]:
        lines = [json.loads(line) for line in (config.parent / run / "metrics.jsonl").read_text().splitlines()]
        return [(line["loss"], line["profile_loss"]) for line in lines]

    def start(self, config: Path, run: str, processes: int, *words: str) -> Runs:
        return start(config, run, processes, *PROFILE, "train.steps=30", "train.threads=1", *words)

    def test_they_are_the_same(self, config_file: Path) -> None:
        finish(self.start(config_file, "alone", 1, "train.accumulate=2"))
        expected = self.losses(config_file, "alone")
        assert len(expected) == 30
        finish(self.start(config_file, "whole", 2))
        np.testing.assert_allclose(self.losses(config_file, "whole"), expected, rtol=0, atol=1e-5)
        finish(self.start(config_file, "shards", 2, "parallel.strategy=fsdp"))
        np.testing.assert_allclose(self.losses(config_file, "shards"), expected, rtol=0, atol=1e-5)
        evaluated = []
        for run in ("alone", "whole", "shards"):
            lines = (config_file.parent / run / "metrics.jsonl").read_text().splitlines()
            last = json.loads(lines[-1])
            evaluated.append((last["valid_perplexity"], last["valid_profile"]))
        np.testing.assert_allclose(evaluated[1:], [evaluated[0]] * 2, rtol=1e-4)
        assert protembed.load(config_file.parent / "shards" / "model.safetensors").card.profile_head

    def test_a_killed_run_goes_on(self, config_file: Path) -> None:
        finish(self.start(config_file, "whole", 1))
        expected = self.losses(config_file, "whole")
        (run,) = self.start(config_file, "killed", 1)
        wait_for_step(config_file, "killed", 12)
        run.kill()
        run.communicate()
        finish(self.start(config_file, "killed", 1))
        assert self.losses(config_file, "killed") == expected
        assert len(losses_of(config_file, "killed")) == 30


class TestSchedule:
    words = ("train.decay_steps=4", "train.warmup_steps=2", "train.decay=linear")

    def test_the_end_is_chosen_while_the_run_goes_on(self, config_file: Path, tmp_path: Path) -> None:
        """Planned for 100 steps, ended at 14: the losses of a run that was planned for 14."""
        planned = losses(load_config(config_file, [*self.words, "train.steps=14", f"train.out={tmp_path}/planned"]))
        trainer = trainer_of(load_config(config_file, [*self.words, "train.steps=100"]))
        first = []
        for report in trainer.run():
            first.append(report.loss)
            if report.step == 11:  # the checkpoint of step 10 is behind it
                trainer.checkpoints.finish()
                break
        assert first[:10] + losses(load_config(config_file, [*self.words, "train.steps=14"])) == planned

    def test_an_end_whose_decay_would_have_begun_is_refused(self, config_file: Path) -> None:
        trainer = trainer_of(load_config(config_file, [*self.words, "train.steps=100"]))
        for report in trainer.run():
            if report.step == 11:  # the checkpoint of step 10 is behind it
                trainer.checkpoints.finish()
                break
        for steps in (11, 12):
            with pytest.raises(TrainingError, match="is not that of the schedule") as error:
                trainer_of(load_config(config_file, [*self.words, f"train.steps={steps}"]))
            assert "steps to 14 or more" in error.value.hint
        with pytest.raises(TrainingError, match="is not that of the schedule"):
            trainer_of(load_config(config_file, [*self.words, "train.steps=100", "train.learning_rate=2e-2"]))
        assert trainer_of(load_config(config_file, [*self.words, "train.steps=14"])).progress.step == 10

    def test_a_decay_that_has_begun_goes_on_and_is_not_stretched(self, config_file: Path) -> None:
        trainer = trainer_of(load_config(config_file, [*self.words, "train.steps=12"]))
        for report in trainer.run():
            if report.step == 11:  # the checkpoint of step 10 is behind it
                trainer.checkpoints.finish()
                break
        with pytest.raises(TrainingError, match="is not that of the schedule"):
            trainer_of(load_config(config_file, [*self.words, "train.steps=20"]))
        assert [
            report.step for report in trainer_of(load_config(config_file, [*self.words, "train.steps=12"])).run()
        ] == [
            11,
            12,
        ]
