//! Which pages are preempted for one that has waited long for memory. Pure, with time passed in.

use tokio::time::Instant;

use super::{MemoryLedger, PREEMPT_AFTER, PREEMPT_HOSTS_AFTER, WINDOW};

impl MemoryLedger {
    /// Preempts others for a page that has waited for [`PREEMPT_AFTER`], as far as that helps it.
    pub(in super::super) fn preempt_others(&mut self, number: u64, now: Instant) {
        let waited = self.waited(number, now);
        let Some(page) = self.pages.get(&number) else { return };
        let Some(request) = page.memory_request.filter(|_| waited >= PREEMPT_AFTER) else { return };
        let need = page.need(request.bytes);
        let (own_host_bytes, fits) = (self.host_bytes(page) + need, page.held_bytes + need <= self.total);
        let mut victims: Vec<(bool, u64, u64)> = Vec::new();
        let mut released_bytes = 0;
        for (other, page) in &self.pages {
            let is_over_budget = self.over_budget == Some(*other);
            if *other == number || page.held_bytes == 0 || page.host.is_none() || !(fits || is_over_budget) {
                continue;
            }
            let released = if is_over_budget { u64::MAX } else { page.held_bytes };
            if page.is_preempted {
                released_bytes = u64::saturating_add(released_bytes, released);
                continue;
            }
            let stopped = page.transfer_rate.is_receiving() || page.memory_request.is_some();
            if !page.is_local && stopped && page.transfer_rate.is_slow(now) {
                victims.push((true, released, *other));
            } else if waited >= PREEMPT_HOSTS_AFTER && !is_over_budget && self.host_bytes(page) > own_host_bytes {
                let long = page.transfer_rate.is_receiving() && page.transfer_rate.receiving_time_at(now) >= WINDOW;
                if long || page.memory_request.is_some() {
                    victims.push((false, self.host_bytes(page), *other));
                }
            }
        }
        let need = if victims.is_empty() { 0 } else { need + self.bytes_ahead(request.rank) };
        victims.sort_unstable();
        while released_bytes < need
            && let Some((_, _, other)) = victims.pop()
        {
            let released = if self.over_budget == Some(other) { u64::MAX } else { self.held_bytes(other) };
            released_bytes = released_bytes.saturating_add(released);
            if let Some(page) = self.pages.get_mut(&other) {
                page.is_preempted = true;
                page.changed.notify_one();
            }
        }
        // The expected bytes of a slow page don't count any more.
        let pending: Vec<u64> = self.pages.iter().filter(|(_, page)| page.pending.1 > 0).map(|(at, _)| *at).collect();
        for at in pending {
            if self.pages.get(&at).is_some_and(|page| page.transfer_rate.is_slow(now)) {
                self.set_pending(at, 0);
            }
        }
        self.grant_waiting(now);
    }
}
