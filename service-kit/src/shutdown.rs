//! The life of a process: tasks live in a tracker, a task that dies ends the process, a signal drains it.

use std::{future::Future, time::Duration};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long the tasks that outlive the others may take to end.
const LAST: Duration = Duration::from_secs(1);

/// The background tasks of one service.
#[derive(Debug, Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    last: TaskTracker,
    end: CancellationToken,
    failed: watch::Sender<Option<String>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            last: TaskTracker::new(),
            end: CancellationToken::new(),
            failed: watch::channel(None).0,
        }
    }
}

impl Tasks {
    /// No task yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the service drains. Tasks finish their work and return.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Cancelled when all other tasks have ended: for what must be there until then.
    pub fn ending(&self) -> CancellationToken {
        self.end.clone()
    }

    /// Runs a task that lives as long as the service. If it fails, panics, or ends before the service
    /// drains, the service ends.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.tracker.spawn(self.watch(name, self.stop.clone(), task));
    }

    /// The same for a task that ends with [`Self::ending`].
    pub fn spawn_last(
        &self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.last.spawn(self.watch(name, self.end.clone(), task));
    }

    /// Says so when a task ends that should not have.
    fn watch(
        &self,
        name: &'static str,
        stop: CancellationToken,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let failed = self.failed.clone();
        async move {
            let outcome = tokio::spawn(task).await;
            let reason = match outcome {
                Ok(Ok(())) if stop.is_cancelled() => return,
                Ok(Ok(())) => "ended early".to_owned(),
                Ok(Err(error)) => format!("{error:#}"),
                Err(panic) => panic.to_string(),
            };
            tracing::error!(task = name, reason, "a background task died");
            failed.send_replace(Some(format!("{name}: {reason}")));
        }
    }

    /// Runs something that may end at any time, such as the work for one connection.
    pub fn spawn_short(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task);
    }

    /// Completes when a task has died; says which and why.
    pub async fn failure(&self) -> String {
        let mut failed = self.failed.subscribe();
        let failure = failed.wait_for(Option::is_some).await;
        match failure {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Asks all tasks to finish and waits for them, at most `patience`. Says whether all did.
    pub async fn drain(&self, patience: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        let all = tokio::time::timeout(patience, self.tracker.wait()).await.is_ok();
        self.end.cancel();
        self.last.close();
        all & tokio::time::timeout(LAST, self.last.wait()).await.is_ok()
    }
}

/// Waits for SIGTERM or SIGINT; a second signal ends the process at once.
pub async fn signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        std::process::exit(130);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Tasks;

    #[tokio::test]
    async fn a_task_that_fails_panics_or_ends_early_is_a_failure() {
        type Task = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;
        let ways: [(Task, &str); 3] = [
            (Box::pin(async { anyhow::bail!("disk full") }), "worker: disk full"),
            (Box::pin(async { panic!("oh no") }), "oh no"),
            (Box::pin(async { Ok(()) }), "ended early"),
        ];
        for (task, reason) in ways {
            let tasks = Tasks::new();
            tasks.spawn("worker", task);
            assert!(tasks.failure().await.contains(reason), "{reason}");
        }
    }

    #[tokio::test]
    async fn the_last_tasks_outlive_the_others() {
        let tasks = Tasks::new();
        let (stop, end) = (tasks.stopping(), tasks.ending());
        let (first, last) = (tasks.stopping(), tasks.ending());
        tasks.spawn("first", async move {
            first.cancelled().await;
            anyhow::ensure!(!end.is_cancelled(), "the end came before the others had ended");
            Ok(())
        });
        tasks.spawn_last("last", async move {
            last.cancelled().await;
            Ok(())
        });
        assert!(!stop.is_cancelled());
        assert!(tasks.drain(Duration::from_secs(5)).await);
        assert!(tasks.failed.borrow().is_none(), "{:?}", tasks.failed.borrow());
    }
}
