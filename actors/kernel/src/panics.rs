//! Panics as text: what the payload says, and a hook that logs each one with its place.

use std::any::Any;

/// What a panic's payload says.
pub fn panic_text(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

/// Logs every panic of the process through tracing, with thread and place, instead of on stderr. For a program's
/// `main`: the hook is the process's, so a library must not choose it.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let text = panic_text(info.payload());
        tracing::error!(thread = thread.name().unwrap_or("?"), place, "panic: {text}");
    }));
}
