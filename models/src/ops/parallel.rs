//! Sharing the work of one operation among threads.
//!
//! A decoded token is some two hundred operations of a few microseconds each. Waking a sleeping thread costs more than
//! such an operation, so the threads here watch for the next one for a moment before they sleep. There are as many as
//! the rayon pool has that the first operation is called from, usually the global one, the caller among them. One operation is shared at a time: whoever comes while another is
//! under way does its own work alone.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, TryLockError};
use std::thread::{self, Thread};

/// How many times a thread looks for work before it sleeps: about a tenth of a millisecond.
const LOOKS: usize = 4000;
/// The bit of [`Team::state`] that says that a job may be joined; the others count who has.
const OPEN: usize = 1 << (usize::BITS - 1);

/// Calls `task` with each of `0..tasks`, on all threads.
///
/// # Panics
/// When a task does.
pub(crate) fn for_each<F: Fn(usize) + Sync>(tasks: usize, task: F) {
    static TEAM: OnceLock<Team> = OnceLock::new();
    let team = (tasks > 1).then(|| TEAM.get_or_init(|| Team::new(rayon::current_num_threads())));
    match team {
        Some(team) if !team.workers.is_empty() => team.share(tasks, &task),
        _ => (0..tasks).for_each(task),
    }
}

/// Threads that tasks may run on.
pub(crate) fn threads() -> usize {
    rayon::current_num_threads()
}

/// What is being done.
#[derive(Clone, Copy)]
struct Job {
    /// Calls the closure at `task` with an index.
    call: unsafe fn(*const (), usize),
    task: *const (),
    tasks: usize,
}

struct Team {
    workers: Vec<Worker>,
    turn: Mutex<()>,
    shared: &'static Shared,
}

struct Worker {
    thread: Thread,
    asleep: &'static AtomicBool,
}

struct Shared {
    /// Counts jobs, so that a worker knows a new one.
    number: AtomicUsize,
    state: AtomicUsize,
    /// The next index nobody has taken.
    next: AtomicUsize,
    panicked: AtomicBool,
    job: UnsafeCell<Job>,
}

// SAFETY: `job` is written only by the holder of `turn` while the state is neither open nor joined, and read only by
// threads that have joined; the state's acquire and release order the two. What the job points to is a `Sync` closure.
unsafe impl Sync for Shared {}

unsafe fn call<F: Fn(usize) + Sync>(task: *const (), index: usize) {
    // SAFETY: `share` made the pointer from an `&F` that it keeps borrowed until every worker has left.
    unsafe { (*task.cast::<F>())(index) }
}

impl Team {
    fn new(threads: usize) -> Team {
        let shared: &'static Shared = Box::leak(Box::new(Shared {
            number: AtomicUsize::new(0),
            state: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            job: UnsafeCell::new(Job {
                call: call::<fn(usize)>,
                task: std::ptr::null(),
                tasks: 0,
            }),
        }));
        let workers = (1..threads).filter_map(|index| {
            let asleep: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
            // Without the thread there is less help, and nothing else is lost.
            let handle = thread::Builder::new()
                .name(format!("cinder-ops-{index}"))
                .spawn(move || work(shared, asleep))
                .ok()?;
            let thread = handle.thread().clone();
            Some(Worker { thread, asleep })
        });
        Team {
            workers: workers.collect(),
            turn: Mutex::new(()),
            shared,
        }
    }

    fn share<F: Fn(usize) + Sync>(&self, tasks: usize, task: &F) {
        let _turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => return (0..tasks).for_each(task),
        };
        let shared = self.shared;
        let job = Job {
            call: call::<F>,
            task: std::ptr::from_ref(task).cast(),
            tasks,
        };
        // SAFETY: we hold the turn, and the last holder left only when no worker was inside.
        unsafe { *shared.job.get() = job };
        shared.next.store(0, Ordering::Relaxed);
        shared.state.store(OPEN, Ordering::Release);
        shared.number.fetch_add(1, Ordering::SeqCst);
        for worker in &self.workers {
            if worker.asleep.load(Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| run(shared, job)));
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        while shared.state.load(Ordering::Acquire) != 0 {
            std::hint::spin_loop();
        }
        let panicked = shared.panicked.swap(false, Ordering::Relaxed);
        match outcome {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => assert!(
                !panicked,
                "a task of an operation panicked on another thread"
            ),
        }
    }
}

/// Takes indices until there are none.
fn run(shared: &Shared, job: Job) {
    loop {
        let index = shared.next.fetch_add(1, Ordering::Relaxed);
        if index >= job.tasks {
            return;
        }
        // SAFETY: the job is open or joined, so its closure is alive.
        unsafe { (job.call)(job.task, index) };
    }
}

/// The life of a worker.
fn work(shared: &'static Shared, asleep: &'static AtomicBool) {
    let mut seen = 0;
    loop {
        let mut looks = 0;
        while shared.number.load(Ordering::SeqCst) == seen {
            looks += 1;
            if looks < LOOKS {
                std::hint::spin_loop();
                continue;
            }
            asleep.store(true, Ordering::SeqCst);
            // Whoever published a job before this line is seen here; whoever does after it wakes us.
            if shared.number.load(Ordering::SeqCst) == seen {
                thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
            looks = 0;
        }
        seen = shared.number.load(Ordering::SeqCst);
        if !join(shared) {
            continue;
        }
        // SAFETY: we have joined, so the job is not written until we leave.
        let job = unsafe { *shared.job.get() };
        if catch_unwind(AssertUnwindSafe(|| run(shared, job))).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.state.fetch_sub(1, Ordering::Release);
    }
}

/// Counts this thread in, if the job is still open.
fn join(shared: &Shared) -> bool {
    let mut state = shared.state.load(Ordering::Acquire);
    while state & OPEN != 0 {
        match shared.state.compare_exchange_weak(
            state,
            state + 1,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => return true,
            Err(now) => state = now,
        }
    }
    false
}

/// A place that several threads write to, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct Parts<T>(*mut T);

// SAFETY: whoever takes the pointer out promises that threads write apart.
unsafe impl<T: Send> Send for Parts<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    pub(crate) fn new(values: &mut [T]) -> Self {
        Parts(values.as_mut_ptr())
    }

    /// The start of the values. Writing through it is unsafe; threads must write to different places.
    pub(crate) fn pointer(self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_called_once_from_any_number_of_threads() {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for tasks in (0..200).chain([5000]) {
                        let calls: Vec<AtomicUsize> =
                            (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                        for_each(tasks, |i| {
                            calls[i].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(calls.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                    }
                });
            }
        });
    }

    #[test]
    fn operations_may_nest() {
        let total = AtomicUsize::new(0);
        for_each(8, |_| {
            for_each(8, |j| {
                total.fetch_add(j, Ordering::Relaxed);
            })
        });
        assert_eq!(total.into_inner(), 8 * 28);
    }

    #[test]
    fn a_panic_comes_back_to_the_caller_and_the_team_goes_on() {
        for bad in 0..16 {
            let outcome = catch_unwind(|| for_each(16, |i| assert_ne!(i, bad, "told to")));
            assert!(outcome.is_err());
        }
        for_each(16, |_| {});
    }
}
