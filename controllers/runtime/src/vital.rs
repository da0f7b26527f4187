//! Tasks without which a process only looks alive.

use std::future::Future;

/// Runs `future`. A panic inside ends the process, which whoever supervises it starts
/// again: a cache that stands still while its server is ready would be worse. Cancel safe
/// if `future` is.
pub async fn vital<F: Future>(name: &'static str, future: F) -> F::Output {
    let _guard = Guard(name);
    future.await
}

struct Guard(&'static str);

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.0, "a task panicked that nothing works without: the process ends");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The body of the child that the test below starts.
    const CHILD: &str = "QUORATE_TEST_VITAL";

    #[tokio::test]
    async fn a_panic_ends_the_process_and_nothing_else_does() {
        if std::env::var_os(CHILD).is_some() {
            let _ = tokio::spawn(vital("test", async { panic!("as planned") })).await;
            return;
        }
        assert_eq!(vital("test", async { 7 }).await, 7);
        let test = "vital::tests::a_panic_ends_the_process_and_nothing_else_does";
        let program = std::env::current_exe().unwrap();
        let status = Command::new(program).args(["--exact", test]).env(CHILD, "1").output().unwrap().status;
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(6), "{status}");
    }
}
