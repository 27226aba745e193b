"""The command line: every slip is told in one line, before anything runs, and nobody is told to add a plus."""

import re
import shlex
import subprocess

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from adbench.experiment import overrides
from adbench.experiment.groups import choices
from adbench.experiment.overrides import first_job, nearest, understood
from adbench.experiment.reevaluation import _with_data
from adbench.run import checked, main
from adbench.types import UserError


def refusal(*arguments, **options):
    with pytest.raises(UserError) as caught:
        understood(arguments, **options)
    assert "+" not in str(caught.value).replace(" ".join(arguments), "")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def value_of(text):
    return OverridesParser.create().parse_override(text).value()


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("method.lambda_normal=2", "there is no method.lambda_normal with method=ssae/mirrored_small; did you mean"),
        ("precision=bf17", "there is no precision; did you mean trainer.precision?"),
        ("lr=0.1", "did you mean method.optimizer.lr?"),
        ("metod=pca", "there is no metod; did you mean method=pca?"),
        ("dataset=cifar10", "did you mean data=cifar10?"),
        ("data.normalclass=3", "did you mean data.normal_class?"),
        ("data_rot=/x", "did you mean data_root"),
        ("method=cbigan method.lambda1=0.1", "did you mean method.lambda_?"),
        ("method=cbigan/small method.optimizers.critic.lrate=0.1", "did you mean method.optimizers.critic.lr"),
        ("evaluation={quantil: 0.9}", "there is no evaluation.quantil; did you mean evaluation.quantile?"),
        ("method.kernel.size=3", "method.kernel is one value, method.kernel=VALUE"),
        ("method=ssae/objective4_small method.recipe.difference.texture=squared", "type method.difference=VALUE"),
        ("data.root=/x", "data=folder"),
        ("data.file=/x.npz", "data=npz, data=tabular have it"),
        ("method.latent=3", "method=cbigan"),
        ("hydra.sweeper.at_mots=3", "did you mean hydra.sweeper.at_most"),
        ("~method.foo", "there is no method.foo"),
        ("~logger", "leaves no logger"),
        ("+metod=cbigan", "nothing reads metod; did you mean method=cbigan?"),
        ("+foo=1", "nothing reads foo"),
        ("+data.normalclass=3", "did you mean data.normal_class?"),
        ("+method.lambda_normal=2", "nothing reads method.lambda_normal"),
        ("+method.optimizer.weight_dcay=0.1", "did you mean method.optimizer.weight_decay"),
        ("++evaluation.quantil=0.9", "did you mean evaluation.quantile?"),
        ("+trainer.gradient_clip_vl=1", "did you mean trainer.gradient_clip_val"),
        ("+trainer.max_epochs=3", "type budget.max_epochs=N"),
        ("+trainer.callbacks=[]", "would not be looked at"),
        ("+seed=3", "seed exists already: type seed=3"),
        ("+pretraining=simclr", "type pretraining=simclr"),
        ("method=cbigan {plus}method.recipe.alpha.objct=1", "nothing reads method.recipe.alpha.objct"),
        ("method=cbigan method.alpha.texture=1e-4", "type method.recipe.alpha.texture"),  # a key of before
        (
            "++method.cache_dir=/x",
            "nothing reads method.cache_dir with method=ssae/mirrored_small; did you mean cache_dir",
        ),
        ("data.seed=1", "did you mean seed?"),
        ("method=null", "method=null does not exist"),
        ("hydra/launcher=jobib", "hydra/launcher=jobib does not exist; did you mean joblib?"),
    ],
)
def test_a_key_that_does_not_exist_or_that_nothing_reads_gets_the_nearest_that_does(arguments, message):
    given = arguments.replace("{plus}", "+")
    line = [given] if "{" in given else given.split()
    with pytest.raises(UserError) as caught:
        understood(line)
    assert message in str(caught.value)
    assert "To append" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        "method.optimizer.lr=0.1 seed=3 trainer.precision=bf16-mixed",
        "+method.optimizer.weight_decay=0.1",  # Adam takes it
        "+trainer.gradient_clip_val=1 +trainer.benchmark=true",  # Lightning's Trainer takes them
        "+logger.csv.version=3",
        "+hydra.job.env_set.NAME=1",
        "method=cbigan +method.recipe.alpha.tabular=0.1",  # a kind of data
        "+cell=3 data=cifar10 data.normal_class=${cell}",  # a value that others are made of
        "~method.kernel ++seed=3",
        "hydra.job.chdir=false",
        "method.corruption=occlusion",
    ],
)
def test_what_exists_or_is_read_by_what_gets_it_is_passed_on_as_it_is(arguments):
    assert understood(arguments.split()) == arguments.split()


@pytest.mark.parametrize("group", ["method", "data", "protocol", "pretraining", "budget", "trainer", "logger"])
def test_every_key_of_every_choice_is_known_and_a_letter_more_is_not(group):
    for name in choices(group)[::9]:
        known = overrides.Known([OverridesParser.create().parse_override(f"{group}={name}")])
        for key in overrides._all_names(known.base.get(group) or {}, group):
            assert overrides._has(known.base, key)
            assert not overrides._has(known.base, f"{key}x")
            if "/" not in key:
                assert key in nearest(f"{key}x", 1, known.base, most=10) or key.count(".") > 2


def test_in_a_sweep_a_key_that_some_job_knows_is_left_to_the_jobs():
    assert understood(["method=cbigan,pca", "method.components=3"], multirun=True)[1] == "method.components=choice(3)"
    assert understood(["method=cbigan,pca", "method.components=3,4"], multirun=True)[1] == "method.components=3,4"
    assert "there is no method.comps" in refusal("method=cbigan,pca", "method.comps=3", multirun=True)


def test_in_a_sweep_of_an_experiment_its_own_choices_count():
    given = ["experiment=cbigan/table2", "method.latent=16"]
    assert understood(given, multirun=True) == given
    assert "method.latent?" in refusal("experiment=cbigan/table2", "method.latnt=16", multirun=True)


def test_a_swept_key_is_checked_as_any_other():
    assert "did you mean" in refusal("method.lambda_normal=1,2", multirun=True)
    assert understood(["method=glob(cbigan*)", "seed=range(3)"], multirun=True)


def test_several_values_without_a_sweep_name_the_sweep_the_list_and_the_quotes():
    message = refusal("seed=0,1")
    assert "add -m" in message
    assert "seed=[0,1]" in message
    assert """'seed="0,1"'""" in message


def test_the_command_ends_with_one_before_a_folder_is_made(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("ADBENCH_RESULTS", str(tmp_path / "results"))
    for line in (["method.lambda_normal=2"], ["-m", "lr=0.1", "seed=0,1"], ["+metod=cbigan"]):
        assert main(line) == 1
        said = capfd.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_an_evaluation_refuses_unknown_keys_as_a_run_does():
    with pytest.raises(UserError, match=r"did you mean data\.batch_size"):
        _with_data({}, {"data": "digits", "method": "pca"}, ["data=digits", "data.batch_siz=3"])


def test_the_nearest_key_ignores_case_and_underscores_and_prefers_the_same_node():
    base = {"method": {"lambda_1": 1, "mode": {"width": 2}}, "data": {"width": 3}}
    assert nearest("method.Lambda1", 3, base) == ["method.lambda_1"]
    assert nearest("method.width", 3, base) == ["method.mode.width", "data.width"]
    assert nearest("zzz", 3, base) == []


# -- the shell and the grammar ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/my images (1)",
        "/a [b]/c",
        "/données/été",
        "/a=b",
        "/it's here",
        '/say "x"',
        "/a,b",
        "/a#b&c;d",
        "/x{1}",
        "/端",
    ],
)
@pytest.mark.parametrize("key", ["data.root", "results", "data_root", "cache_dir"])
def test_a_path_is_taken_as_it_stands_whatever_is_in_it(key, path):
    line = understood(["data=folder", "data.name=x", f"{key}={path}"])
    assert value_of(line[2]) == path


def test_a_tilde_in_a_path_is_the_home_folder_which_no_shell_says_inside_a_word(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of (me)")
    for text in ("~/x", '"~/x"', "~/x (1)"):
        assert value_of(understood([f"results={text}"])[0]) == f"/home/of (me)/x{' (1)' * text.endswith(')')}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{images}", "type data=folder data.root={images} for images of your own"),
        ("method pca", "'method' is no key=value; type method=VALUE, with = and no space"),
        ("seed=1 pca", "'pca' is no key=value; a value with spaces"),
        ("pca data=digits", "'pca' is no key=value; type method=pca"),
        ("digits", "type data=digits"),
    ],
)
def test_a_word_alone_is_answered_with_the_argument_that_was_meant(tmp_path, line, message):
    with pytest.raises(UserError, match=re.escape(message.format(images=tmp_path))):
        understood(line.format(images=tmp_path).split())


def test_what_the_shell_cut_off_is_joined_again_in_the_message():
    message = refusal("data=folder", "data.root=/my", "images")
    assert "'images' is no key=value" in message
    (advised,) = shlex.split(message.rpartition("as in ")[2])
    assert advised == "data.root=/my images"
    assert "no space before or after the =" in refusal("method", "=pca")
    assert "no space before or after the =" in refusal("method=", "pca")
    message = refusal("method.optimizer={lr:", "0.1}")
    assert shlex.split(message.rpartition("as in ")[2]) == ["method.optimizer={lr: 0.1}"]


@pytest.mark.parametrize("text", ["trainer.strategy=a (1)", "hydra.run.dir=/x/é", "method.initialization=a=b"])
def test_the_quoting_that_a_message_advises_works(text):
    message = refusal(text)
    (advised,) = shlex.split(message.rpartition("as in ")[2])
    key, _, value = text.partition("=")
    assert advised.startswith(f"{key}=")
    assert value_of(advised) == value


def test_the_quoting_that_a_sweep_of_odd_paths_needs_is_named():
    assert "double quotes" in refusal("data=folder", "data.name=x", "data.root=/a (1),/b", multirun=True)


def test_a_mapping_that_does_not_parse_is_told_how_to_quote_inside():
    assert "double quotes" in refusal("data=folder", "data.anomalous={scratch: bad/(1)*.png}")


# -- what is not installed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "extra"),
    [
        ("hydra/launcher=joblib", "launchers"),
        ("hydra/launcher=submitit_local", "launchers"),
        ("hydra/launcher=slurm", "launchers"),
        ("hydra/launcher=ray", "ray"),
        ("hydra/sweeper=tuning", "launchers"),
        ("experiment=first_look", "launchers"),  # which has joblib's
    ],
)
def test_a_launcher_or_a_sweeper_whose_extra_is_missing_names_the_install(argument, extra, monkeypatch):
    monkeypatch.setattr(overrides, "_absent", lambda module: True)
    assert f'pip install "adbench-vision[{extra}]"' in refusal(argument)


@pytest.mark.parametrize("argument", ["hydra/launcher=joblib", "experiment=first_look", "hydra/launcher=slurm"])
def test_the_same_is_said_where_composing_finds_it_missing(argument, monkeypatch):
    store = ConfigStore.instance().repo["hydra"]["launcher"]
    for name in ("joblib.yaml", "submitit_slurm.yaml"):
        monkeypatch.delitem(store, name)
    assert 'pip install "adbench-vision[launchers]"' in refusal(argument)


# -- a sweep that is only looked at -----------------------------------------------------------------------------------


def test_the_first_job_of_a_sweep_has_the_first_of_all_values():
    assert first_job(["method=cbigan,pca", "seed=range(2,5)", "data=digits"]) == (
        ["method=cbigan", "seed=2", "data=digits"],
        6,
    )
    first, jobs = first_job(["experiment=cbigan/table2", "seed=7"])
    assert "data=mvtec/bottle" in first
    assert "seed=7" in first
    assert jobs == 30
    assert first_job(["method.optimizer.lr=interval(0.1,1)"]) == (["method.optimizer.lr=0.1"], 0)


def test_cfg_of_a_sweep_prints_the_configuration_of_its_first_job(capfd):
    main(["-m", "method=pca,cbigan", "seed=3,4", "--cfg", "job"])
    said = capfd.readouterr()
    assert "adbench.methods.trivial.PCAResidual" in said.out
    assert "seed: 3" in said.out
    assert "the first job of 4 jobs" in said.err


@pytest.mark.parametrize(
    ("line", "message"),
    [("--resolve", "goes with --cfg"), ("-m -r seed=0", "a sweep: give one")],
)
def test_options_that_do_not_go_together_are_refused_with_a_sentence(line, message):
    with pytest.raises(UserError, match=message):
        checked(line.split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("method=pca --dryrun seed=1", "--dryrun is no option; did you mean --dry-run?"),
        ("--multi-run method=pca", "did you mean --multirun?"),
        ("--seed 1", "--seed is no option; values are given as key=value, as in seed=VALUE"),
        ("method=pca --data-root=/x", "as in data_root=/x"),
        ("--device cpu method=pca", "--device is no option; values are given as key=value, as in seed=1"),
    ],
)
def test_an_unknown_option_is_named_alone_with_what_to_type(line, message):
    with pytest.raises(UserError, match=re.escape(message)):
        checked(line.split())


def test_options_may_stand_between_overrides():
    assert checked(["seed=1", "-m", "data=digits"]) == ["-m", "seed=1", "data=digits"]


# -- what comes next --------------------------------------------------------------------------------------------------


def test_the_next_commands_after_a_first_run_can_be_typed(tmp_path, monkeypatch):
    from adbench.run import next_steps

    monkeypatch.chdir(tmp_path)
    text = next_steps("results of mine")
    commands = [line.partition("  ")[2] for line in text.splitlines() if " -m adbench." in line]
    assert [shlex.split(line)[1:3] for line in commands] == [["-m", "adbench.report"], ["-m", "adbench.run"]]
    assert shlex.split(commands[0])[-1] == "results of mine"
    python = shlex.split(commands[0])[0]
    done = subprocess.run([python, "-c", "import adbench"], capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_only_a_run_without_arguments_says_what_comes_next(monkeypatch, capfd, tmp_path):
    from adbench.experiment import job as jobs
    from adbench.experiment.states import Outcome

    monkeypatch.setenv("ADBENCH_RESULTS", str(tmp_path))
    monkeypatch.setattr(jobs, "execute", lambda cfg: Outcome(0, "finished"))
    assert main([]) == 0
    assert "data=folder data.root=DIR" in capfd.readouterr().out
    assert main(["seed=1"]) == 0
    assert "data=folder" not in capfd.readouterr().out
