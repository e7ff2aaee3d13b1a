//! `cofferd`: see `cofferd --help`.

use std::{io::Write as _, process::ExitCode};

use cofferd::{
    Daemon,
    config::{self, Command, Config},
};
use cofferdam_types::{Error, Result};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let print = |text: String| {
        std::io::stdout().write_all(text.as_bytes()).map_err(|e| Error::io("output", "", "can't be written", &e))
    };
    let done = config::parse(std::env::args_os().skip(1)).and_then(|command| match command {
        Command::Print(text) => print(text),
        Command::Run(config) => run(&config),
        Command::Rebuild(config) => {
            log(&config)?;
            print(cofferd::rebuild(&config)?)
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cofferd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn log(config: &Config) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log)
        .map_err(|e| Error::invalid("option", "--log", format!("is not a filter: {e}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        // It would say on stderr, or panic, that stderr takes no line: a log that nobody keeps ends no daemon.
        .log_internal_errors(false)
        .init();
    Ok(())
}

fn run(config: &Config) -> Result<()> {
    log(config)?;
    // The first runtime makes the pipe that tells of signals, by whose number each thread's handler writes into it. A signal
    // comes to any thread: that which starts programs, with a table of its own, has the pipe too if it is made behind this.
    let system = actix::System::new();
    // And before there is any descriptor of a client's: no program that is started has to do with one.
    cofferdam_sys::spawn::begin()
        .map_err(|e| Error::io("daemon", "", "can't make the thread that starts programs", &e))?;
    system.block_on(async {
        let os = |e: std::io::Error| Error::io("signal", "", "can't be watched", &e);
        let mut terminate = signal(SignalKind::terminate()).map_err(os)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(os)?;
        // The end of a terminal is not the daemon's. Taken and not ignored, as every program that it starts would inherit.
        for kind in
            [SignalKind::hangup(), SignalKind::user_defined1(), SignalKind::user_defined2(), SignalKind::alarm()]
        {
            drop(signal(kind).map_err(os)?);
        }
        let daemon = Daemon::start(config)?;
        daemon.ready().await?;
        tracing::info!(root = %config.root.display(), state = %config.state.display(), "ready");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; containers go on");
        daemon.stop().await;
        Ok(())
    })
}
