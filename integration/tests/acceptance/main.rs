//! What containerd's tests of its client and its daemon verify, asked of ours by a program that has the client library
//! alone. docs/acceptance.md is the table.
//!
//! All tests share one daemon, each in a namespace of its own. That is one that is started for them, or with `--socket` one
//! that runs already, which they leave as they found it. What ends daemons or kills shims has a daemon to itself, and is
//! left out there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a failure is a panic")]

mod checkpoints;
mod clients;
mod containers;
mod daemons;
mod execs;
mod host;
mod place;
mod signals;
mod snapshots;
mod streams;
mod tasks;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::Parser as _;
use cofferdam_integration::{Daemon, bounded};
use futures::future::LocalBoxFuture;
use libtest_mimic::{Completion, Trial};

use crate::place::{Suite, Test};

/// Gives functions their names. `integration/tests/walls/acceptance.rs` reads the lists too.
macro_rules! tests {
    ($($module:ident::$test:ident,)*) => {
        &[$((concat!(stringify!($module), "::", stringify!($test)), |given| Box::pin($module::$test(given))),)*]
    };
}

const SHARED: &[(&str, Test)] = tests![
    clients::new_client,
    clients::image_pull,
    clients::image_is_unpacked,
    clients::content_client,
    clients::content_client_writer,
    clients::oci_export,
    clients::oci_export_and_import,
    snapshots::snapshotter_client_basic,
    snapshots::snapshotter_client_stat_active,
    snapshots::snapshotter_client_stat_comitted,
    snapshots::snapshotter_client_transitivity_test,
    snapshots::snapshotter_client_preare_view_failingtest,
    snapshots::snapshotter_client_update,
    snapshots::snapshotter_client_remove,
    snapshots::snapshotter_client_layer_fileupdate,
    snapshots::snapshotter_client_remove_directory_in_lower_layer,
    snapshots::snapshotter_client_chown,
    snapshots::snapshotter_client_directory_permission_on_commit,
    snapshots::snapshotter_client_remove_intermediate_snapshot,
    snapshots::snapshotter_client_deleted_files_in_child_snapshot,
    snapshots::snapshotter_client_move_file_from_lower_layer,
    snapshots::snapshotter_client_view_readonly,
    snapshots::snapshotter_client_stat_in_walk,
    snapshots::what_a_snapshot_refuses,
    snapshots::snapshot_usage,
    snapshots::snapshot_of_a_container,
    containers::container_list,
    containers::new_container,
    containers::container_image,
    containers::container_no_image,
    containers::container_info,
    containers::container_labels,
    containers::container_extensions,
    containers::container_update,
    containers::delete_running_container,
    containers::container_runtime_options,
    tasks::container_start,
    tasks::container_no_binary_exists,
    tasks::container_hostname,
    tasks::container_exited_at_set,
    tasks::container_username,
    tasks::container_user_id,
    tasks::wait_stopped_task,
    tasks::task_force_delete,
    tasks::duplicate_task_create,
    tasks::container_pids,
    tasks::container_metrics,
    tasks::deleted_container_metrics,
    tasks::task_update,
    tasks::oom_event,
    tasks::pause_resume,
    execs::container_exec,
    execs::container_large_exec_args,
    execs::container_exec_no_binary_exists,
    execs::wait_stopped_process,
    execs::process_force_delete,
    execs::delete_container_exec_created,
    streams::container_output,
    streams::container_close_io,
    streams::container_attach,
    streams::container_attach_process,
    streams::task_resize,
    streams::terminal_io,
    signals::container_kill,
    signals::container_kill_all,
    signals::container_kill_init_pid_host,
    host::shim_in_cgroup,
    host::user_namespaces_writable_root_fs,
    host::user_namespaces_readonly_root_fs,
];

/// As above; the daemon must know a criu.
const CHECKPOINTS: &[(&str, Test)] = tests![
    checkpoints::checkpoint_restore,
    checkpoints::checkpoint_restore_new_container,
    checkpoints::checkpoint_leave_running,
];

/// On a daemon with busybox that nobody else has.
type Alone = for<'a> fn(&'a Daemon) -> LocalBoxFuture<'a, ()>;

const ALONE: &[(&str, Alone)] = tests![
    daemons::daemon_restart,
    daemons::daemon_restart_with_running_shim,
    daemons::shim_sigkilled,
    daemons::snapshots_outlive_the_daemon,
    daemons::new_errors_with_same_path_for_root_and_state,
    daemons::against_a_daemon_that_already_runs,
];

/// Why these are left out of a daemon that runs already.
const WHY: &str = "ends daemons or shims";

// Not called as the harness's own are: each struct is a group of arguments of its name.
#[derive(clap::Parser)]
struct Options {
    /// Ask the daemon that listens at this socket, and start none
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Leave out what takes criu: the daemon has none
    #[arg(long)]
    no_criu: bool,
    #[command(flatten)]
    harness: libtest_mimic::Arguments,
}

fn main() -> ExitCode {
    let Options { socket, no_criu, harness } = Options::parse();
    let own = socket.is_none();
    let suite = Arc::new(Suite::new(socket, !no_criu));
    let shared = SHARED.iter().map(|test| (test, false)).chain(CHECKPOINTS.iter().map(|test| (test, no_criu)));
    let shared = shared.map(|((name, test), left_out)| {
        let suite = suite.clone();
        Trial::ignorable_test(*name, move || {
            if left_out {
                return Ok(Completion::ignored_with("--no-criu"));
            }
            bounded(suite.run(*test));
            Ok(Completion::Completed)
        })
    });
    let alone = ALONE.iter().map(|(name, test)| {
        Trial::ignorable_test(*name, move || {
            if !own {
                return Ok(Completion::ignored_with(WHY));
            }
            let daemon = Daemon::with_busybox();
            let before = daemon.leftovers();
            bounded(test(&daemon));
            daemon.settles(&before);
            Ok(Completion::Completed)
        })
    });
    let trials = shared.chain(alone).collect();
    let conclusion = libtest_mimic::run(&harness, trials);
    // The daemon ends with the suite.
    drop(suite);
    conclusion.exit_code()
}
