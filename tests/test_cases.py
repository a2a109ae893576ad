"""All 76 cases: each has an answer, and each answer that is about a model has a test which would see it fail."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from hermetiq.cases import CASES, explain_case
from hermetiq.rules import RULES
from hermetiq.rules_page import rules_page

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"

PROOFS = {
    "U01": "test_companions: wrong_ids_are_mended_in_every_file",
    "U02": "formats/gguf/test_metadata: a_bpe_header_holds_merges_and_every_id_explicitly; "
    "verify/test_parity: stops_agree_in_both_directions",
    "U03": "test_companions: a_template_in_one_place_comes_out_in_both",
    "U04": "repair/test_repair: a_conflict_is_settled_by_the_file_that_transformers_takes",
    "U05": "repair/test_rows: a_token_without_a_row_that_no_chat_needs_is_taken_out_everywhere",
    "U06": "formats/gguf/test_metadata: rows_without_a_token_are_named_and_unused",
    "U07": "test_pipeline: tags_are_control_tokens_however_the_source_types_them",
    "U08": "calibration/test_observe: activations_beyond_float16_are_found_with_layer_and_value",
    "U09": "test_doctor: what_cannot_work_here_has_its_reason",
    "U10": "runtimes/test_environments: requirement_files_pin_everything_and_name_no_registry",
    "U11": "quantize/test_factor: the_ladder_climbs_as_far_as_it_must",
    "U12": "test_plan: memory_does_not_grow_with_depth; test_pipeline: a_full_disk_is_told_before_work_begins",
    "U13": "checkpoint/test_families: refuses_other_models_with_the_list",
    "U14": "chat/test_artifact_checks: a_layer_left_whole_is_named",
    "U15": "test_resume: killed_at_random_moments",
    "U16": "checkpoint/test_adapter: a_tied_base_becomes_the_model_that_was_trained",
    "U17": "test_companions: the_class_is_one_that_every_reader_knows",
    "U18": "checkpoint/test_pretokenizer: an_unknown_one_names_the_nearest_and_strings_that_differ",
    "U19": "test_companions: a_template_that_prints_bos_gets_no_second_one",
    "U20": "repair/test_rows: untrained_tags_keep_their_rows_unless_asked",
    "U21": "chat/test_merge: a_broken_row_is_named_with_its_owner; repair/test_rows: rows_of_a_parent_end_the_finding",
    "U22": "chat/test_mutations: the_rule_finds_its_fault_and_no_other_rule_does",
    "U23": "test_plan: what_gpus_cannot_split_is_in_the_plan",
    "U24": "test_tracks: zero_points_stored_in_the_other_version_are_caught_before_they_are_written",
    "U25": "formats/test_linear_plan: the_tensor_parallel_matrix",
    "U26": "test_pipeline: rows_of_64_show_their_fallbacks_in_the_plan_and_the_manifest",
    "U27": "checkpoint/test_folder: quantized_by_its_tensors",
    "U28": "checkpoint/test_folder: missing_surplus_and_misshapen_tensors",
    "U29": "test_companions: both_generations_of_transformers_read_the_configuration",
    "U30": "verify/test_stored_tensors: a_gguf_without_its_tensors_is_told_which_and_how_many",
    "U31": "quantize/test_grid: an_empty_group_among_others",
    "U32": "test_tracks: activations_beyond_float16_are_a_warning_on_record",
    "U33": "formats/gguf/test_writer: a_weight_too_large_for_half_is_refused_by_name",
    "U34": "chat/test_artifact_checks: a_gguf_is_held_against_its_file_type",
    "U35": "chat/test_calibration: terminators_of_another_template_are_included",
    "U36": "calibration/test_observe: padding_is_not_seen_even_where_it_is_enormous",
    "U37": "quantize/test_gptq: dead_columns_are_rounded_to_nearest",
    "U38": "test_companions: a_lost_generation_config_is_restored",
    "U39": "chat/test_merge: an_eos_that_a_merge_brought_back_is_named_with_that_of_the_parent",
    "U40": "verify/test_terminator: a_source_that_has_not_is_named_as_the_culprit",
    "U41": "checkpoint/test_tokenizer: added_tokens_json_and_the_forms_of_extra_special_tokens",
    "U42": "chat/test_inspect: a_missing_head_is_found_without_weights",
    "U43": "formats/gguf/test_recipe: every_recipe_gives_every_tensor_llama_cpps_type; "
    "formats/test_exl2_plan: the_head_follows_the_recipe; verify/test_tag_rows: a_tied_head_is_the_embedding",
    "U44": "chat/test_inspect: a_missing_head_is_found_without_weights",
    "U45": "formats/test_shards: the_same_tensors_make_the_same_bytes_wherever_they_lie_in_memory; "
    "checkpoint/test_folder: pickled_weights",
    "U46": "chat/test_mutations: the_rule_finds_its_fault_and_no_other_rule_does",
    "U47": "checkpoint/test_tokenizer: merges_are_read_in_both_spellings; "
    "test_companions: merges_are_in_the_form_that_every_reader_takes",
    "U48": "repair/test_command: a_sentencepiece_file_of_another_model_is_left_out",
    "U49": "verify/test_parity: equal_ids_pass_and_the_shortest_difference_is_shown",
    "U50": "recipes/test_ollama: ollama_is_given_the_prompts_of_the_model; "
    "recipes/test_run: the_preset_holds_the_template_and_no_stop_that_an_id_says",
    "U51": "chat/test_dialect: what_other_engines_lack_is_named_once",
    "U52": "recipes/test_ollama: a_stop_is_a_text_only_where_no_id_can_say_it",
    "U53": "checkpoint/test_families: refuses_other_models_with_the_list",
    "U54": "test_house: help_is_instant_and_imports_no_torch",
    "U55": "runtimes/test_cuda: a_compiler_of_another_version_than_torch_is_none",
    "U56": "formats/test_legacy: exl2_is_told_to_be_legacy_with_what_still_loads_it",
    "U57": "publish/test_faults: after_a_cut_no_byte_is_sent_twice",
    "U58": "publish/test_split: llama_cpp_loads_the_first_part_and_computes_the_same",
    "U59": "publish/test_faults: the_hubs_own_times_are_waited",
    "U60": "publish/test_publish: one_commit_for_each_branch",
    "U61": "publish/test_publish: no_right_and_no_room_are_seen_before_the_first_byte",
    "U62": "test_pipeline: a_folder_with_other_files_is_left_alone; "
    "publish/test_publish: somebody_elses_repo_is_left_alone",
    "U63": "publish/test_licence: what_is_not_known_is_refused",
    "U65": "checkpoint/test_folder: an_odd_card_stops_nothing",
    "U66": "checkpoint/test_open: a_folder_of_gguf_files_names_them",
    "U67": "test_pipeline: kill_minus_nine_leaves_no_final_name",
    "U68": "checkpoint/test_folder: truncated_shard",
    "U69": "checkpoint/test_adapter: merging_is_in_float32_and_touches_nothing_else",
    "U70": "checkpoint/test_adapter: a_grown_vocabulary_is_taken_over",
    "U71": "test_tracks: an_importance_matrix_is_made_where_it_is_free_or_asked_for",
    "U73": "formats/gguf/test_metadata: a_bpe_header_holds_merges_and_every_id_explicitly",
    "U74": "test_companions: both_generations_of_transformers_read_the_configuration; "
    "recipes/test_run: vllm_takes_its_ids_from_generation_config_and_float16",
    "U76": "verify/test_parity: stops_agree_in_both_directions",
}
"""Test files and functions by case; a case that rules answer has theirs besides."""
OF_NO_MODEL = {"U64", "U72", "U75"}
"""Cases of publishing and of installations: no checkpoint, artifact or runtime shows them."""


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((TESTS / f"{file}.py").read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@cache
def sources() -> tuple[str, ...]:
    here = Path(__file__)
    return tuple(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py") if path != here)


def test_the_stored_page_is_made_of_the_tables() -> None:
    stored = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    assert stored == rules_page(), "run `make rules`"


def test_there_are_76_cases_and_rules_name_no_other() -> None:
    assert list(CASES) == [f"U{number:02}" for number in range(1, 77)]
    assert {case for rule in RULES.values() for case in rule.cases} <= set(CASES)


@pytest.mark.parametrize("number", CASES)
def test_every_case_is_answered(number: str) -> None:
    case = CASES[number]
    assert case.answered
    assert all(text in explain_case(number) for text in (case.sees, case.because, case.answered))
    assert number in PROOFS or number in OF_NO_MODEL


@pytest.mark.parametrize("number", PROOFS)
def test_the_proof_of_an_answer_is_a_test_that_exists(number: str) -> None:
    for proof in PROOFS[number].split("; "):
        file, name = proof.split(": ")
        assert f"test_{name}" in functions(file), proof


@pytest.mark.parametrize("rule", sorted({rule for case in CASES.values() for rule in case.rules}))
def test_every_rule_of_a_case_is_broken_by_some_test(rule: str) -> None:
    assert any(re.search(rf"(?<![\w-]){rule}(?![\w-])", source) for source in sources())
