"""The catalogue of faults: 94 rows, each with the tests that show it.

A row's tests are named as `folder/file.py::test`, as pytest does below `tests/`.
"""

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

POOL = "supervisor/test_pool.py::"
FAULTS = "supervisor/test_faults.py::"
SUPERVISOR = "supervisor/test_supervisor.py::"
HANGS = "supervisor/test_hangs.py::"
MEMORY = "supervisor/test_memory_limits.py::"
CHANNEL = "supervisor/test_channel.py::"
ORPHANS = "supervisor/test_orphans.py::"
JOURNAL = "supervisor/test_journal.py::"
BAD = (
    "catalog/test_bad_models.py::"
    "test_chaos_046_048_049_050_051_052_053_055_a_broken_model_is_refused_by_name_in_under_a_second"
)
REFUSALS = "e2e/test_refusals.py::"
BROKEN = f"{REFUSALS}test_chaos_046_048_049_050_051_052_053_055_broken_models_are_refused_and_nobody_notices"
HTTP = "api/test_connections.py::"
API = "api/test_model_api.py::"
SCHEMAS = "api/test_schemas.py::"
UNIX = "control/test_unix.py::"
SOCKET = "control/test_control_server.py::"
TLS = "control/test_tls.py::"
WEB = "e2e/test_web.py::"
MANAGER = "e2e/test_model_manager.py::"
DAEMON = "e2e/test_daemon_process.py::"
REAL_LIMITS = "chaos/test_the_real_limits.py::test_chaos_017_018_019_a_hang_is_ended_within_its_limit_and_five_seconds"
INTEGRITY = "catalog/test_integrity.py::"
DAMAGED = (
    "chaos/test_damaged_weights.py::"
    "test_chaos_012_047_a_worker_refuses_weights_that_are_damaged_or_not_the_ones_that_were_checked"
)
EXHAUSTION = "chaos/test_exhaustion.py::"
GUARDIAN = f"{ORPHANS}test_chaos_042_a_killed_guardian_is_replaced_within_seconds"
SIGNALS = f"{FAULTS}test_chaos_009_015_a_signal_in_mid_stream_loses_and_repeats_no_token"
NO_PYTHON = f"{FAULTS}test_chaos_002_003_an_interpreter_that_does_not_run_fails_the_load_after_two_tries"

Row = tuple[str, ...]

ROWS: dict[int, Row] = {
    1: (
        "killed before its first word",
        f"{FAULTS}test_chaos_001_a_worker_killed_before_its_first_word_is_tried_once_more",
    ),
    2: ("the interpreter exits before main", NO_PYTHON),
    3: ("the interpreter hangs before main", NO_PYTHON),
    4: (
        "the engine cannot be imported",
        f"{SUPERVISOR}test_chaos_004_an_engine_that_cannot_be_imported_fails_the_load_with_its_text",
    ),
    5: (
        "SIGKILL in mid-load",
        f"{FAULTS}test_chaos_005_a_kill_in_mid_load_answers_whoever_waits_and_gives_the_memory_back",
    ),
    6: ("SIGSEGV in mid-load", f"{SUPERVISOR}test_chaos_006_a_death_in_the_first_load_is_told_with_the_last_log_line"),
    7: (
        "abort for want of GPU memory",
        f"{FAULTS}test_chaos_007_a_worker_without_gpu_memory_goes_on_smaller_and_fails_the_second_time",
        "supervisor/test_restart.py::test_chaos_007_what_metal_says_before_an_abort_is_found_above_the_stacks",
    ),
    8: ("SIGKILL in prefill", f"{FAULTS}test_chaos_008_a_kill_in_prefill_costs_a_pause_and_no_answer"),
    9: (
        "SIGKILL in mid-stream",
        SIGNALS,
        f"{SUPERVISOR}test_chaos_009_a_stream_goes_on_after_its_worker_is_killed",
        "chaos/test_replay.py::test_chaos_009_texts_are_those_of_an_undisturbed_run_however_often_the_worker_is_killed",
    ),
    10: (
        "SIGKILL in mid-message",
        f"{CHANNEL}test_chaos_010_a_message_torn_by_sigkill_is_seen_as_the_end_within_a_second",
    ),
    11: ("SIGKILL during an unload", f"{FAULTS}test_chaos_011_a_kill_during_the_unload_is_an_unload"),
    12: (
        "SIGBUS: the model's file was cut",
        f"{FAULTS}test_chaos_012_a_worker_whose_mapped_file_was_cut_dies_of_sigbus_and_is_not_respawned",
        f"{INTEGRITY}test_chaos_012_a_file_that_was_cut_replaced_or_removed_is_another_one",
        DAMAGED,
    ),
    13: ("exit 0 without a farewell", f"{POOL}test_chaos_013_an_exit_without_a_farewell_is_a_crash_whatever_its_code"),
    14: (
        "an exception in one request",
        f"{FAULTS}test_chaos_014_an_error_is_told_once_and_the_worker_lives",
        "worker/test_mlx_engine.py::test_chaos_014_an_exception_in_one_request_ends_only_that_request",
    ),
    15: ("SIGTERM by an operator", SIGNALS),
    16: (
        "SIGSTOP, idle and in mid-stream",
        f"{HANGS}test_chaos_016_a_stopped_worker_is_killed_at_the_limit_and_its_stream_goes_on",
        f"{HANGS}test_chaos_016_a_worker_that_goes_on_before_the_limit_is_left_alone",
        f"{HANGS}test_chaos_016_an_idle_worker_that_is_stopped_is_replaced",
    ),
    17: (
        "native code that keeps the GIL",
        f"{HANGS}test_chaos_017_native_code_that_holds_the_gil_stops_the_heart",
        REAL_LIMITS,
    ),
    18: (
        "native code that hangs without the GIL",
        f"{HANGS}test_chaos_018_native_code_without_the_gil_makes_no_progress",
        REAL_LIMITS,
    ),
    19: (
        "an endless loop in Python",
        f"{HANGS}test_chaos_019_an_endless_python_loop_makes_no_progress",
        f"{HANGS}test_chaos_019_an_endless_chat_template_of_a_real_model",
        REAL_LIMITS,
    ),
    20: (
        "unload and SIGTERM are ignored",
        f"{SUPERVISOR}test_chaos_020_a_worker_that_ignores_unload_and_sigterm_is_killed",
    ),
    21: (
        "a model that crashes again and again",
        f"{POOL}test_chaos_021_deaths_in_a_row_wait_longer_each_time_then_the_model_has_failed",
        f"{POOL}test_chaos_021_a_failed_model_is_tried_once_more_when_it_is_wanted_a_while_later",
    ),
    22: (
        "a poisoned request",
        f"{SUPERVISOR}test_chaos_022_a_poisoned_request_is_quarantined_and_its_neighbours_finish_whole",
        f"{POOL}test_chaos_022_poisoned_requests_do_not_use_up_the_crash_budget",
    ),
    23: (
        "eight workers killed at once",
        f"{FAULTS}test_chaos_023_eight_workers_killed_at_once_are_all_noticed_and_replaced",
    ),
    24: (
        "a grandchild holds the pipes",
        f"{SUPERVISOR}test_chaos_024_a_grandchild_that_holds_the_pipes_does_not_hide_a_death",
    ),
    25: (
        "the channel is closed, the process lives",
        f"{SUPERVISOR}test_chaos_025_a_worker_that_closes_its_channel_but_lives_is_killed",
    ),
    26: (
        "the kernel kills for memory",
        f"{MEMORY}test_chaos_026_the_kernel_kills_for_memory_in_a_load_and_in_streams_and_takes_nobody_along",
        f"{MEMORY}test_chaos_026_workers_ask_the_kernel_to_kill_them_before_the_supervisor",
        f"{MEMORY}test_chaos_026_a_request_under_which_the_kernel_kills_for_memory_twice_is_ended",
    ),
    27: (
        "a SIGKILL that smells of memory",
        f"{MEMORY}test_chaos_027_a_kill_minus_9_at_most_of_the_budget_is_suspected_memory",
    ),
    28: (
        "growth beyond the soft and the hard limit",
        f"{MEMORY}test_chaos_028_a_runaway_is_ended_at_the_hard_limit_and_takes_nobody_along",
    ),
    29: (
        "a model larger than the memory",
        f"{MEMORY}test_chaos_029_a_load_larger_than_the_memory_is_refused_before_a_spawn",
    ),
    30: (
        "loads race for the last memory",
        f"{MEMORY}test_chaos_030_of_loads_that_race_for_the_last_memory_one_wins_and_reservations_come_back",
    ),
    31: (
        "a flood of tokens",
        f"{FAULTS}test_chaos_031_a_flood_of_tokens_holds_nobody_else_up",
        f"{HANGS}test_chaos_031_no_more_of_a_flood_of_tokens_waits_in_the_supervisor_than_it_can_soon_take_in",
    ),
    32: (
        "a flood of requests",
        f"{FAULTS}test_chaos_032_a_flood_of_requests_is_refused_beyond_the_queue_and_served_in_order",
        f"{HANGS}test_chaos_032_whoever_asks_for_thousands_at_once_waits_and_all_others_are_heard",
    ),
    33: (
        "a request to a worker that dies now",
        f"{SUPERVISOR}test_chaos_033_a_request_to_a_worker_that_dies_this_instant_always_ends",
    ),
    34: ("a message that is no event", f"{CHANNEL}test_chaos_034_what_is_no_event_is_a_protocol_error"),
    35: (
        "a length of two gigabytes; an older life",
        f"{CHANNEL}test_chaos_035_a_boastful_length_is_refused_without_the_memory_for_it",
        f"{POOL}test_chaos_035_events_of_an_older_life_are_dropped",
    ),
    36: (
        "the supervisor's reader stalls",
        f"{HANGS}test_chaos_036_a_stalled_reader_holds_its_worker_back_and_kills_nobody",
    ),
    37: ("a flood on stderr", f"{SUPERVISOR}test_chaos_037_the_log_of_a_chatty_worker_is_bounded_and_blocks_nobody"),
    38: (
        "SIGKILL of the supervisor",
        f"{ORPHANS}test_chaos_038_a_killed_supervisor_leaves_no_worker_and_no_guardian",
        f"{ORPHANS}test_chaos_038_a_stopped_worker_dies_with_a_killed_supervisor",
        f"{DAEMON}test_chaos_038_killing_the_daemon_leaves_nothing",
    ),
    39: (
        "SIGTERM of the daemon under load",
        f"{DAEMON}test_chaos_039_running_requests_finish_after_sigterm_and_new_ones_are_refused",
    ),
    40: (
        "Ctrl-C once, twice, three times",
        f"{DAEMON}test_chaos_040_a_second_signal_ends_what_runs_and_a_third_everything",
    ),
    41: (
        "the terminal is closed",
        f"{DAEMON}test_chaos_041_the_end_of_its_terminal_stops_it_and_any_other_sighup_does_not",
    ),
    42: ("the guardian is killed", GUARDIAN),
    43: (
        "the resource tracker is killed",
        f"{FAULTS}test_chaos_043_a_killed_resource_tracker_costs_nothing_but_a_warning",
    ),
    44: (
        "started from a thread that ends",
        f"{FAULTS}test_chaos_044_workers_outlive_the_thread_that_started_the_supervisor",
    ),
    45: ("64 loads and unloads", f"{FAULTS}test_chaos_045_loading_and_unloading_again_and_again_holds_nothing_back"),
    46: (
        "broken safetensors headers",
        BAD,
        "catalog/test_headers.py::test_chaos_046_a_damaged_safetensors_header_gives_an_error_of_ours_or_a_sound_one",
        BROKEN,
    ),
    47: (
        "weights with flipped bits",
        f"{INTEGRITY}test_chaos_047_a_flipped_bit_is_found_where_the_sha256_is_known",
        f"{INTEGRITY}test_chaos_047_a_whole_file_is_hashed_once_and_again_when_it_is_another_one",
        f"{INTEGRITY}test_chaos_047_without_a_known_sha256_it_says_unverified",
        DAMAGED,
    ),
    48: ("a broken config.json", BAD, BROKEN),
    49: ("impossible sizes in the config", BAD, BROKEN),
    50: ("a million layers", BAD, BROKEN),
    51: (
        "a config that names code",
        BAD,
        "worker/test_mlx_load.py::test_chaos_051_no_code_of_a_model_folder_runs",
        BROKEN,
    ),
    52: ("a tokenizer that names code", BAD, BROKEN),
    53: ("weights that are a pickle", BAD, BROKEN),
    54: (
        "a request that asks to trust remote code",
        f"{SCHEMAS}test_chaos_054_no_body_can_ask_for_remote_code",
        f"{REFUSALS}test_chaos_054_057_091_hostile_names_origins_and_remote_code_are_refused",
    ),
    55: (
        "a broken tokenizer or template",
        BAD,
        "worker/test_prompt.py::test_chaos_055_what_the_template_refuses_is_the_callers_error",
        BROKEN,
    ),
    56: (
        "a model removed while it is loaded",
        "catalog/test_bad_models.py::test_chaos_056_a_model_that_was_removed_is_not_found_the_next_time",
        "catalog/test_bad_models.py::test_chaos_056_a_model_that_was_replaced_is_checked_again",
        f"{REFUSALS}test_chaos_056_060_a_model_whose_files_are_gone_answers_on_until_it_is_unloaded",
    ),
    57: (
        "names that climb out of their folder",
        "catalog/test_resolve.py::test_chaos_057_a_name_that_no_model_can_have_is_refused_before_the_disk_is_touched",
        "catalog/test_resolve.py::test_chaos_057_a_link_out_of_models_dir_is_refused",
        "catalog/test_resolve.py::test_chaos_057_another_case_is_another_name",
        f"{API}test_chaos_057_a_hostile_name_is_refused",
        f"{REFUSALS}test_chaos_054_057_091_hostile_names_origins_and_remote_code_are_refused",
    ),
    58: (
        "bodies that are not one clean JSON object",
        f"{SCHEMAS}test_chaos_058_bytes_that_are_not_one_clean_json_object_are_refused_with_the_place",
        f"{SCHEMAS}test_chaos_058_only_json_is_read",
        f"{REFUSALS}test_chaos_058_059_060_bodies_that_cannot_be_answered_are_refused_by_every_api",
    ),
    59: (
        "parameters out of bounds",
        f"{SCHEMAS}test_chaos_059_a_value_out_of_bounds_is_refused_by_name",
        f"{SUPERVISOR}test_chaos_059_a_parameter_that_cannot_be_is_refused_by_name",
        f"{REFUSALS}test_chaos_058_059_060_bodies_that_cannot_be_answered_are_refused_by_every_api",
    ),
    60: (
        "empty, huge and broken prompts",
        f"{SCHEMAS}test_chaos_060_an_empty_prompt_has_a_code_of_its_own",
        "worker/test_prompt.py::test_chaos_060_text_that_cannot_fit_is_refused_before_it_is_tokenized",
        "worker/test_prompt.py::test_chaos_060_half_a_surrogate_pair_is_refused",
        "worker/test_prompt.py::test_chaos_060_a_control_token_written_in_a_message_stays_plain_text",
        f"{REFUSALS}test_chaos_056_060_a_model_whose_files_are_gone_answers_on_until_it_is_unloaded",
        f"{REFUSALS}test_chaos_058_059_060_bodies_that_cannot_be_answered_are_refused_by_every_api",
    ),
    61: (
        "lengths that lie, bombs, endless headers",
        f"{HTTP}test_chaos_061_a_body_over_the_limit_is_refused_before_it_is_read",
        f"{HTTP}test_chaos_061_a_chunked_body_over_the_limit_is_cut_off",
        f"{HTTP}test_chaos_061_headers_without_end_are_refused",
        f"{HTTP}test_chaos_061_who_sends_too_much_hears_so_though_it_was_not_read",
        f"{HTTP}test_chaos_061_who_sends_on_and_on_after_a_refusal_is_cut_off",
        f"{SCHEMAS}test_chaos_061_a_compressed_body_is_refused_unread",
        f"{REFUSALS}test_chaos_061_066_sockets_that_speak_no_clean_http_cost_nobody_anything",
    ),
    62: (
        "a request that drips in",
        f"{HTTP}test_chaos_062_a_request_that_drips_in_is_cut_off_and_others_are_served",
        f"{REFUSALS}test_chaos_062_063_who_sends_or_reads_too_slowly_is_cut_off_and_the_others_are_served",
    ),
    63: (
        "a client that does not read",
        f"{HTTP}test_chaos_063_a_client_that_never_reads_is_cut_off_and_its_stream_is_closed",
        f"{REFUSALS}test_chaos_062_063_who_sends_or_reads_too_slowly_is_cut_off_and_the_others_are_served",
    ),
    64: ("a client leaves in mid-stream", f"{API}test_chaos_064_065_a_client_that_leaves_ends_its_generation"),
    65: (
        "a client leaves in prefill",
        f"{API}test_chaos_064_065_a_client_that_leaves_ends_its_generation",
        f"{HTTP}test_chaos_065_an_app_can_ask_whether_its_client_has_left",
    ),
    66: (
        "HEAD, pipelining, garbage",
        f"{HTTP}test_chaos_066_a_head_request_has_no_body",
        f"{HTTP}test_chaos_066_pipelined_requests_are_answered_in_order",
        f"{HTTP}test_chaos_066_garbage_is_a_json_error",
        f"{REFUSALS}test_chaos_061_066_sockets_that_speak_no_clean_http_cost_nobody_anything",
    ),
    67: (
        "aborts that are late, double or foreign",
        f"{FAULTS}test_chaos_067_aborting_twice_or_after_the_end_or_somebody_unknown_changes_nothing",
    ),
    68: (
        "load and unload into each other",
        f"{POOL}test_chaos_068_a_load_during_an_unload_runs_after_it",
        f"{POOL}test_chaos_068_two_loads_of_the_same_model_share_one_worker",
        f"{POOL}test_chaos_068_a_loading_worker_is_termed_at_once_and_its_load_hears_of_it",
        f"{POOL}test_chaos_068_running_requests_finish_before_the_unload_and_new_ones_are_refused",
        f"{REFUSALS}test_chaos_068_loads_and_unloads_into_each_other_have_an_answer_each",
    ),
    69: (
        "thousands of requests at once over HTTP",
        f"{EXHAUSTION}test_chaos_069_thousands_of_connections_are_served_queued_or_refused_at_once",
        f"{API}test_chaos_069_more_requests_than_max_streams_get_503_and_status_still_answers",
        f"{HTTP}test_chaos_069_who_has_no_place_is_refused_though_no_thread_is_free",
        f"{HTTP}test_chaos_069_those_that_wait_for_a_thread_are_counted_and_have_their_place",
    ),
    70: (
        "gunicorn's sync workers",
        f"{WEB}test_chaos_070_sync_workers_are_refused_at_the_start_with_the_reason",
        f"{WEB}test_chaos_070_a_stream_outlasts_the_timeout_of_gunicorns_threads",
    ),
    71: (
        "a web worker is killed in mid-stream",
        f"{WEB}test_chaos_071_a_web_process_that_is_killed_takes_its_own_requests_along_and_no_other",
    ),
    72: ("the port is in use", f"{DAEMON}test_chaos_072_a_port_in_use_ends_it_with_3_and_its_owner_before_any_worker"),
    73: (
        "a second supervisor",
        f"{UNIX}test_chaos_073_a_second_daemon_is_told_who_is_the_first",
        f"{DAEMON}test_chaos_073_a_second_daemon_ends_with_3_and_the_owner_of_the_first",
    ),
    74: (
        "stale pid and socket files",
        f"{UNIX}test_chaos_074_the_socket_of_a_daemon_that_died_is_taken_over",
        f"{UNIX}test_chaos_074_a_file_that_is_no_socket_is_left_alone",
    ),
    75: (
        "the socket's folder is unusable",
        f"{UNIX}test_chaos_075_a_folder_that_cannot_be_trusted_is_refused_with_the_remedy",
        f"{UNIX}test_chaos_075_a_path_that_the_system_cannot_take_is_refused_by_its_length",
        f"{UNIX}test_chaos_075_a_folder_that_cannot_be_made_is_named",
        f"{UNIX}test_chaos_075_a_read_only_folder_is_refused",
    ),
    76: (
        "the disk is full",
        f"{JOURNAL}test_chaos_076_a_disk_that_takes_nothing_is_told_once_and_does_not_stop_the_daemon",
        f"{EXHAUSTION}test_chaos_076_a_disk_that_takes_no_log_costs_no_worker_and_no_answer",
        f"{API}test_chaos_076_health_is_degraded_while_a_disk_is_full",
    ),
    77: ("a journal that cannot be read", f"{JOURNAL}test_chaos_077_an_unreadable_journal_is_moved_aside"),
    78: (
        "no descriptors left",
        f"{EXHAUSTION}test_chaos_078_without_descriptors_connections_and_loads_get_503_until_there_are_some_again",
    ),
    79: (
        "no processes left",
        f"{EXHAUSTION}test_chaos_079_without_processes_a_load_gets_503_and_the_service_lives",
        f"{FAULTS}test_chaos_079_a_process_without_a_thread_to_read_it_is_no_worker",
    ),
    80: (
        "the wall clock jumps",
        f"{EXHAUSTION}test_chaos_080_a_clock_that_jumps_a_day_ends_nothing_early_or_late",
        f"{JOURNAL}test_chaos_080_a_clock_that_was_set_back_does_not_count_ends_of_the_future",
    ),
    81: (
        "the machine sleeps in mid-stream",
        f"{HANGS}test_chaos_081_a_machine_that_slept_kills_nobody",
        "supervisor/test_clocks.py::test_chaos_081_after_the_machine_slept_the_clocks_start_anew",
    ),
    82: ("a starved machine", f"{HANGS}test_chaos_082_a_starved_worker_is_slow_and_not_hung"),
    83: (
        "a silent peer on the control socket",
        f"{SOCKET}test_chaos_083_silent_peers_hold_nobody_up_and_are_dropped_after_a_second",
        f"{TLS}test_chaos_083_silent_peers_hold_nobody_up_and_are_dropped",
        f"{REFUSALS}test_chaos_083_084_086_089_bad_peers_of_the_control_socket_cost_nobody_anything",
    ),
    84: (
        "garbage on the control socket",
        f"{SOCKET}test_chaos_084_a_bad_peer_is_dropped_and_the_next_one_served",
        f"{SOCKET}test_chaos_084_a_client_with_another_key_is_refused_and_so_is_a_daemon",
        f"{TLS}test_chaos_084_a_bad_peer_is_refused_told_once_and_the_others_are_served",
        f"{REFUSALS}test_chaos_083_084_086_089_bad_peers_of_the_control_socket_cost_nobody_anything",
    ),
    85: (
        "another user on the control socket",
        f"{SOCKET}test_chaos_085_another_user_is_refused_though_the_folder_be_open",
    ),
    86: (
        "a pickle on the control socket",
        f"{SOCKET}test_chaos_086_a_pickle_is_a_bad_frame_and_does_not_run",
        f"{TLS}test_chaos_086_a_pickle_does_not_run_before_or_after_the_handshake",
        f"{REFUSALS}test_chaos_083_084_086_089_bad_peers_of_the_control_socket_cost_nobody_anything",
    ),
    87: (
        "the supervisor restarts under a live web server",
        f"{MANAGER}test_chaos_087_streams_of_a_client_go_on_with_the_next_daemon",
        f"{MANAGER}test_chaos_087_a_client_that_may_starts_the_next_daemon_itself",
        f"{WEB}test_chaos_087_gunicorn_needs_no_restart_when_the_daemon_does",
        f"{MANAGER}test_chaos_087_without_a_next_daemon_the_streams_end_when_their_time_is_over",
    ),
    88: (
        "the web server starts first",
        f"{WEB}test_chaos_088_a_web_server_that_starts_first_finds_the_daemon_when_it_comes",
    ),
    89: (
        "versions of the protocol that differ",
        f"{SOCKET}test_chaos_089_another_version_is_refused_with_both_named",
        f"{REFUSALS}test_chaos_083_084_086_089_bad_peers_of_the_control_socket_cost_nobody_anything",
    ),
    90: (
        "two dirty ends in a row",
        f"{JOURNAL}test_chaos_090_after_two_crashes_in_fifteen_minutes_nothing_is_loaded_and_it_says_why",
        f"{DAEMON}test_chaos_090_a_daemon_that_died_loads_again_what_was_loaded_and_not_after_the_second_time",
    ),
    91: (
        "a hostile web page",
        "api/test_security.py::test_chaos_091_a_name_that_was_rebound_to_this_machine_is_not",
        "api/test_security.py::test_chaos_091_no_other_origin_may_post_by_default",
        f"{REFUSALS}test_chaos_054_057_091_hostile_names_origins_and_remote_code_are_refused",
    ),
    92: (
        "malicious output of a model",
        f"{API}test_chaos_092_output_of_a_malicious_model_stays_inside_its_json_strings",
        "worker/test_text.py::test_chaos_092_every_piece_is_whole_code_points_and_the_pieces_are_the_text",
    ),
    93: (
        "the caller's main module in a worker",
        f"{ORPHANS}test_chaos_093_it_works_in_python_c_on_stdin_and_in_a_script_without_a_main_guard",
        f"{ORPHANS}test_chaos_093_a_worker_holds_neither_flask_nor_the_supervisor_nor_the_callers_main",
    ),
    94: (
        "a Python whose queues do not close",
        f"{CHANNEL}test_chaos_094_a_python_whose_queues_keep_their_ends_open_is_refused",
    ),
}


@functools.cache
def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_row_is_there_once_and_says_something() -> None:
    assert list(ROWS) == list(range(1, 95))
    assert all(len(row) >= 2 for row in ROWS.values())


@pytest.mark.parametrize("number", ROWS)
def test_the_tests_of_a_row_exist_and_have_its_number(number: int) -> None:
    for entry in ROWS[number][1:]:
        file, _, name = entry.partition("::")
        assert name in functions(TESTS / file), entry
        assert re.match(rf"test_chaos(_\d{{3}})*_{number:03d}_", name), entry


def test_every_test_with_a_number_is_in_its_row() -> None:
    for file in TESTS.rglob("test_*.py"):
        for name in functions(file):
            numbers = re.match(r"test_chaos((?:_\d{3})+)_", name)
            for number in re.findall(r"\d{3}", numbers[1]) if numbers else ():
                assert any(entry.endswith(f"::{name}") for entry in ROWS[int(number)]), f"{name} is not in row {number}"
