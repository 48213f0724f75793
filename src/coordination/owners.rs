//! The workers that read the partitions of the source, by the records that wait in each.

use headwater_dataflows::{Partition, ShardId};
use serde::{Deserialize, Serialize};

/// The worker that reads each partition, for a whole run. Every process of a cluster has the same.
///
/// It decides nothing but who does the work: an epoch binds the same records whoever reads them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owners(Vec<u32>);

impl Owners {
    /// Spreads partitions over `workers` by the number of records that wait in each: the largest first, each to the worker
    /// with the fewest waiting records. No worker reads more than twice its share of the partitions, since a lag passes and
    /// the run goes on. Equal lags are spread by number.
    pub fn by_lag(lags: &[u64], workers: usize) -> Owners {
        let workers = workers.max(1);
        // A partition without a lag is read, too.
        let mean = lags.iter().sum::<u64>() / (lags.len().max(1) as u64);
        let most = 2 * lags.len().div_ceil(workers);
        let mut order: Vec<_> = (0..lags.len()).collect();
        order.sort_by_key(|&partition| (std::cmp::Reverse(lags[partition]), partition));
        // The weight and the number of the partitions of each worker.
        let mut loads = vec![(0_u64, 0_usize); workers];
        let mut owners = vec![0; lags.len()];
        for partition in order {
            let free = (0..workers).filter(|&worker| loads[worker].1 < most);
            let Some(worker) = free.min_by_key(|&worker| (loads[worker], worker)) else { continue };
            loads[worker].0 += lags[partition] + mean.max(1);
            loads[worker].1 += 1;
            owners[partition] = worker as u32;
        }
        Owners(owners)
    }

    /// Returns the index of the worker, of `workers`, that reads a partition. Those that were added later, or all if no lags
    /// are known, are spread by number.
    pub fn worker(&self, partition: Partition, workers: usize) -> usize {
        match self.0.get(partition.0 as usize) {
            Some(&worker) => worker as usize,
            None => ShardId::of_partition(partition).worker(workers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_lag(lags: &[u64], workers: usize) -> Vec<u32> {
        Owners::by_lag(lags, workers).0
    }

    #[test]
    fn equal_lags_are_spread_by_number() {
        for lag in [0, 7, 1_000_000] {
            assert_eq!(by_lag(&[lag; 7], 3), [0, 1, 2, 0, 1, 2, 0]);
        }
        assert_eq!(by_lag(&[3, 2, 1], 1), [0, 0, 0]);
        assert_eq!(by_lag(&[5], 4), [0]);
        assert_eq!(by_lag(&[], 4), [0; 0]);
    }

    #[test]
    fn a_hot_partition_leaves_the_others_to_other_workers() {
        assert_eq!(by_lag(&[10, 900_000, 10, 10, 10, 10], 2), [1, 0, 1, 1, 1, 1]);
        assert_eq!(by_lag(&[100, 90, 80, 10], 2), [0, 1, 1, 0]);
    }

    #[test]
    fn no_worker_reads_more_than_twice_its_share() {
        let mut lags = [0; 24];
        lags[5] = u64::MAX / 100;
        let owners = by_lag(&lags, 4);
        for worker in 0..4 {
            let owned = owners.iter().filter(|&&owner| owner == worker).count();
            assert!((1..=12).contains(&owned), "{worker}: {owned}");
        }
    }

    #[test]
    fn added_partitions_are_spread_by_number() {
        let owners = Owners::by_lag(&[0, 9, 9], 2);
        let worker = |partition| owners.worker(Partition(partition), 2);
        assert_eq!([worker(0), worker(1), worker(2)], [0, 0, 1]);
        assert_eq!([worker(3), worker(4)], [1, 0]);
        assert_eq!(Owners::default().worker(Partition(5), 3), 2);
    }
}
