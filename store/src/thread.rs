//! Threads that the store cannot do without.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread. Its panic ends the process: a member whose log or collector stands
/// still would only look alive.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.to_owned()).spawn(move || {
        let _guard = Guard(name);
        run();
    })
}

struct Guard(&'static str);

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(thread = self.0, "ending the process: a thread of the store panicked");
            std::process::abort();
        }
    }
}
