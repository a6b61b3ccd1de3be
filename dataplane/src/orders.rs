//! What the control plane tells the workers while they run: bans, and new contents of address sets.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam::queue::ArrayQueue;
use ipnet::IpNet;
use sluice_filters::engine::Plan;
use sluice_filters::units::{Micros, WorkerId};
use thiserror::Error;

use crate::clock::Clock;

/// Orders one worker's queue holds.
const CAPACITY: usize = 4096;

/// One order.
#[derive(Debug)]
pub(crate) enum Order {
    /// Ban a prefix until then, Unix time.
    Ban { prefix: IpNet, until: Micros, reason: u32 },
    /// Lift the ban of exactly this prefix.
    Unban(IpNet),
    /// Put this plan in force.
    Replace(Arc<Plan>),
}

/// A worker has not read its last orders yet. Nobody was told anything; try again in a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a worker has not read its last orders yet")]
pub struct Busy;

/// The way to all workers. Cheap to clone; orders reach all workers or none, in the same sequence.
#[derive(Clone, Debug)]
pub struct Orders {
    queues: Arc<[ArrayQueue<Order>]>,
    sender: Arc<Mutex<Sender>>,
    clock: Clock,
}

/// What there is one of, however many give orders.
#[derive(Debug)]
struct Sender {
    /// The plans that workers may still hold, the newest last: whoever drops the last reference frees millions of octets, which must
    /// not be a worker.
    plans: Vec<Arc<Plan>>,
}

impl Orders {
    /// For `workers` workers that begin with `plan` and go by `clock`.
    #[must_use]
    pub fn new(workers: usize, plan: Arc<Plan>, clock: Clock) -> Orders {
        let queues = (0..workers).map(|_| ArrayQueue::new(CAPACITY)).collect();
        Orders { queues, sender: Arc::new(Mutex::new(Sender { plans: vec![plan] })), clock }
    }

    /// The workers' clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Bans `prefix` until the wall clock shows `until`. `reason` is the caller's own number for why.
    ///
    /// # Errors
    /// [`Busy`].
    pub fn ban(&self, prefix: IpNet, until: SystemTime, reason: u32) -> Result<(), Busy> {
        let since = until.duration_since(UNIX_EPOCH).unwrap_or_default();
        let until = Micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX));
        self.tell(|| Order::Ban { prefix, until, reason })
    }

    /// Lifts the ban of exactly this prefix.
    ///
    /// # Errors
    /// [`Busy`].
    pub fn unban(&self, prefix: IpNet) -> Result<(), Busy> {
        self.tell(|| Order::Unban(prefix))
    }

    /// Puts `plan` in force: the plan in force with other contents of its sets.
    ///
    /// # Errors
    /// [`Busy`].
    pub fn replace(&self, plan: Plan) -> Result<(), Busy> {
        let plan = Arc::new(plan);
        self.tell(|| Order::Replace(Arc::clone(&plan)))?;
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.plans.push(plan);
        drop(sender);
        self.tidy();
        Ok(())
    }

    /// The newest plan.
    #[must_use]
    pub fn plan(&self) -> Option<Arc<Plan>> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).plans.last().cloned()
    }

    /// Frees the plans that no worker holds any more. To be called now and then.
    pub fn tidy(&self) {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = sender.plans.pop();
        sender.plans.retain(|plan| Arc::strong_count(plan) > 1);
        sender.plans.extend(newest);
    }

    fn tell(&self, order: impl Fn() -> Order) -> Result<(), Busy> {
        let _sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if self.queues.iter().any(ArrayQueue::is_full) {
            return Err(Busy);
        }
        // Workers only take: what had room still has.
        for queue in self.queues.iter() {
            queue.push(order()).map_err(|_| Busy)?;
        }
        Ok(())
    }

    /// The next order for `worker`.
    pub(crate) fn next(&self, worker: WorkerId) -> Option<Order> {
        self.queues.get(usize::from(worker.0))?.pop()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const CONFIG: &str = r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["198.51.100.2/24"]
[[service]]
name = "web"
listen = ["198.51.100.10:80"]
[[service.upstream]]
address = "198.51.100.5:80"
[filters]
deny = ["192.0.2.0/24"]
"#;

    fn orders(workers: usize) -> (Orders, sluice_config::Config) {
        let config = sluice_config::parse("test.toml", CONFIG).unwrap();
        let plan = Plan::compile("test.toml", &config, &[], workers).unwrap();
        (Orders::new(workers, Arc::new(plan), Clock::start()), config)
    }

    #[test]
    fn every_worker_hears_every_order_in_sequence() {
        let (orders, _) = orders(2);
        let prefix: IpNet = "192.0.2.0/24".parse().unwrap();
        let end = UNIX_EPOCH + Duration::from_micros(1_767_323_045_000_001);
        orders.ban(prefix, end, 7).unwrap();
        orders.unban(prefix).unwrap();
        for worker in [WorkerId(0), WorkerId(1)] {
            let Some(Order::Ban { until, reason: 7, .. }) = orders.next(worker) else { panic!() };
            assert_eq!(until, Micros(1_767_323_045_000_001));
            assert!(matches!(orders.next(worker), Some(Order::Unban(lifted)) if lifted == prefix));
            assert!(orders.next(worker).is_none());
        }
    }

    #[test]
    fn an_order_reaches_all_workers_or_none() {
        let (orders, _) = orders(2);
        let prefix: IpNet = "192.0.2.0/24".parse().unwrap();
        for _ in 0..CAPACITY {
            orders.unban(prefix).unwrap();
        }
        assert_eq!(orders.unban(prefix), Err(Busy));
        assert!(orders.next(WorkerId(0)).is_some());
        assert_eq!(orders.unban(prefix), Err(Busy), "the other one's queue is full");
        assert!(orders.next(WorkerId(1)).is_some());
        assert_eq!(orders.unban(prefix), Ok(()));
    }

    #[test]
    fn a_worker_is_never_the_last_to_hold_a_plan() {
        let (orders, config) = orders(1);
        let old = Arc::downgrade(&orders.plan().unwrap());
        let held = old.upgrade();
        orders.replace(orders.plan().unwrap().with_sets(&config, &[]).unwrap()).unwrap();
        assert!(old.upgrade().is_some(), "a worker holds it");
        drop(held);
        assert!(old.upgrade().is_some(), "until somebody tidies up");
        orders.tidy();
        assert!(old.upgrade().is_none());
        assert!(matches!(orders.next(WorkerId(0)), Some(Order::Replace(_))));
        orders.tidy();
        assert!(orders.plan().is_some(), "the newest stays");
    }
}
