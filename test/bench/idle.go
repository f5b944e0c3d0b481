package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// benchIdle leaves a cluster alone. Nothing is asked while it is measured.
func benchIdle(b *bench, s *settings, r *report) {
	c := harness.Start(b, harness.Options{S3: servers.StartVersityGW(b)})
	c.WaitBackups(1)
	b.sleep(s.settle)
	before := requests(b, c)
	var managers, etcds []int
	for _, n := range c.Nodes {
		managers, etcds = append(managers, n.PID()), append(etcds, n.EtcdPID())
	}
	took := func(pids []int) []time.Duration {
		var list []time.Duration
		for _, pid := range pids {
			list = append(list, cpuOf(pid))
		}
		return list
	}
	from, cpu, etcdCPU := time.Now(), took(managers), took(etcds)
	b.sleep(s.idle)
	minutes := time.Since(from).Minutes()
	cpuAfter, etcdCPUAfter := took(managers), took(etcds)
	var perMinute, etcdPerMinute, rss, etcdRSS []float64
	for i := range managers {
		perMinute = append(perMinute, (cpuAfter[i]-cpu[i]).Seconds()/minutes)
		etcdPerMinute = append(etcdPerMinute, (etcdCPUAfter[i]-etcdCPU[i]).Seconds()/minutes)
		rss, etcdRSS = append(rss, memoryOf(managers[i], "VmRSS")), append(etcdRSS, memoryOf(etcds[i], "VmRSS"))
	}
	after := requests(b, c)
	sum := 0.0
	var ops []string
	for _, op := range slices.Sorted(maps.Keys(after)) {
		if n := after[op] - before[op]; n > 0 {
			sum += float64(n)
			ops = append(ops, fmt.Sprintf("%s %.1f", op, float64(n)/minutes))
		}
	}
	r.addMost("Idle: CPU of a manager a minute (reference: the etcd beside it)", "%.2f s", perMinute, etcdPerMinute, 0.15)
	r.addMost("Idle: resident memory of a manager (reference: the etcd beside it)", "%.0f MiB", rss, etcdRSS, 60)
	r.addMost("Idle: requests a minute to the store (S3), of all three managers", "%.1f", []float64{sum / minutes}, nil, 6)
	r.note("Idle for %s: requests a minute by kind: %s.", s.idle, strings.Join(ops, ", "))
}

// requests sums the store's requests up over all managers.
func requests(b *bench, c *harness.Cluster) map[string]int64 {
	sum := map[string]int64{}
	for _, n := range c.Nodes {
		v, err := n.Status(b.ctx)
		b.must(err)
		for op, count := range v.StoreRequests {
			sum[op] += count
		}
	}
	return sum
}

func (b *bench) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-b.ctx.Done():
		b.Fatal("interrupted")
	}
}
