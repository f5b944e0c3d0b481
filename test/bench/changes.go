package main

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	etcdclient "github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

const (
	// keptInterval is the flag's default.
	keptInterval = changelog.DefaultInterval
	// writers is how many clients write as fast as they can; more of them don't make etcd faster here.
	writers = 48
	// pace is what a busy cluster of API servers writes, a second.
	pace = 500
	// The public list price of S3 Standard in us-east-1, in dollars for a thousand requests.
	pricePut, priceGet = 0.005, 0.0004
)

// benchChanges measures what it costs to keep every change, and how fast changes are replayed.
func benchChanges(b *bench, s *settings, r *report) {
	changesAtMost(b, s, r)
	changesAtPace(b, s, r)
}

// keeper starts a cluster on S3 that keeps its changes, or not.
func keeper(b *bench, keep bool) *harness.Cluster {
	interval := "0"
	if keep {
		interval = keptInterval.String()
	}
	c := harness.Start(b, harness.Options{S3: servers.StartVersityGW(b),
		Args: []string{"--change-log-interval=" + interval}, Env: []string{"ETCD_QUOTA_BACKEND_BYTES=" + quota}})
	c.WaitBackups(1)
	return c
}

// What is done with the changes.
const (
	kept        = "kept"
	notKept     = "not-kept"
	onlyWatched = "only-watched"
)

// changesAtMost writes as fast as three members take it.
func changesAtMost(b *bench, s *settings, r *report) {
	var with, without, watched, age, replay []time.Duration
	var rate, rateWithout, perCPU []float64
	for i := range s.slow {
		for _, what := range []string{kept, notKept, onlyWatched} {
			b.sub(fmt.Sprintf("at-most-%s-%d", what, i), func(b *bench) {
				c := keeper(b, what == kept)
				if what == onlyWatched {
					b.watchAll(c)
				}
				answers, took := b.writeAll(c, s.busy)
				p, _ := p99(answers, time.Time{}, time.Now().Add(time.Hour))
				persec := float64(len(answers)) / took.Seconds()
				b.say("changes %s: %.0f writes a second, p99 %s", what, persec, round(p))
				switch what {
				case notKept:
					without, rateWithout = append(without, p), append(rateWithout, persec)
					return
				case onlyWatched:
					watched = append(watched, p)
					return
				}
				with, rate = append(with, p), append(rate, persec)
				age = append(age, b.lag(c))
				d, n := b.replayAll(c)
				replay, perCPU = append(replay, d), append(perCPU, n)
			})
		}
	}
	r.addRatio(fmt.Sprintf("Changes: p99 of writes of 1 KiB at the highest rate (%s a second; reference: none are kept, %s)",
		numbers(rate, "%.0f"), numbers(rateWithout, "%.0f")), with, without, 1.05)
	r.note("Changes: where a client follows all keys and keeps nothing, that percentile is %s, %.2f times that of none: what etcd itself does for it, and reading.",
		durations(watched), float64(median(watched))/float64(median(without)))
	r.addTime("Changes: how far the store is behind at the end of that", age, nil, keptInterval)
	r.addLeast("Changes: replayed transactions of 1 KiB, a second of a core", "%.0f", perCPU, 50_000)
	r.note("Changes: replaying all of that, with its decoding and the start of a process, took %s.", durations(replay))
}

// writeAll has many clients write, each as soon as it has an answer.
func (b *bench) writeAll(c *harness.Cluster, lasts time.Duration) ([]answer, time.Duration) {
	ctx, cancel := context.WithTimeout(b.ctx, lasts)
	defer cancel()
	value := string(make([]byte, 1024))
	var mu sync.Mutex
	var all []answer
	var wg sync.WaitGroup
	from := time.Now()
	urls := c.ClientURLs()
	for w := range writers {
		client := b.dial(c.TLS(), urls[w%len(urls)])
		wg.Go(func() {
			defer client.Close()
			var list []answer
			for i := 0; ctx.Err() == nil; i++ {
				asked := time.Now()
				if _, err := client.Put(ctx, fmt.Sprintf("/bench/writer/%d/%03d", w, i%500), value); err == nil {
					list = append(list, answer{asked, time.Since(asked)})
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, list...)
		})
	}
	wg.Wait()
	return all, time.Since(from)
}

// watchAll follows all keys through a follower, as the leading manager does, and keeps nothing.
func (b *bench) watchAll(c *harness.Cluster) {
	client, err := new(etcdclient.Streams).Dial(c.ClientURLs(), c.TLS())
	b.must(err)
	b.Cleanup(func() { _ = client.Close() })
	revision, _, err := client.Revision(b.ctx)
	b.must(err)
	stream, err := client.WatchAll(b.ctx, revision+1)
	b.must(err)
	go func() {
		for {
			if _, err := stream.Next(); err != nil {
				return // with the client
			}
		}
	}()
}

// lag is how long after the last write the store has everything, or how old what it has is by then, whichever is more.
func (b *bench) lag(c *harness.Cluster) time.Duration {
	ended := time.Now()
	revision := c.Put("/bench/last", "x")
	for {
		v, err := c.WaitLeader().Status(b.ctx)
		b.must(err)
		if v.Changes != nil && v.Changes.Archived >= revision {
			return time.Since(ended)
		}
		b.sleep(20 * time.Millisecond)
	}
}

// replayAll puts all changes on the first backup, and returns how long that took and how many transactions a second of CPU that is.
func (b *bench) replayAll(c *harness.Cluster) (time.Duration, float64) {
	archive := &changelog.Archive{Catalog: c.Catalog}
	p, err := archive.Plan(b.ctx, changelog.Target{Latest: true, Backup: c.Backups()[0].Name})
	b.must(err)
	path := filepath.Join(b.TempDir(), "db")
	_, err = backup.FetchFile(b.ctx, c.Catalog, p.Base, path, backup.FileOptions{})
	b.must(err)
	from, cpu := time.Now(), usedCPU()
	res, err := archive.Replay(b.ctx, c.Programs.Manager, path, p.Chain, p.Revision, nil)
	b.must(err)
	took, used := time.Since(from), usedCPU()-cpu
	b.say("replayed %d transactions in %s, %s of CPU", res.Transactions, round(took), round(used))
	return took, float64(res.Transactions) / used.Seconds()
}

// usedCPU is what this process and its children that have ended took.
func usedCPU() (d time.Duration) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err == nil {
			d += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return d
}

// changesAtPace writes at a pace for a while, and looks at what the leading manager takes and what the store is asked.
func changesAtPace(b *bench, s *settings, r *report) {
	var cpu, memory [2][]float64
	for i, keep := range []bool{true, false} {
		b.sub(fmt.Sprintf("at-pace-%t", keep), func(b *bench) {
			c := keeper(b, keep)
			f := b.startFlow(c.TLS(), c.ClientURLs(), pace)
			b.sleep(10 * time.Second)
			leader := c.WaitLeader()
			before, used, from := requests(b, c), cpuOf(leader.PID()), time.Now()
			b.sleep(s.idle)
			minutes := time.Since(from).Minutes()
			cpu[i] = append(cpu[i], (cpuOf(leader.PID())-used).Seconds()/minutes)
			memory[i] = append(memory[i], memoryOf(leader.PID(), "VmRSS"))
			after := requests(b, c)
			f.end()
			puts, gets := 0.0, 0.0
			for op, n := range after {
				switch d := float64(n - before[op]); op {
				case "PutObject", "ListObjectsV2", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload":
					puts += d / minutes * 60
				default:
					gets += d / minutes * 60
				}
			}
			what := "no changes kept"
			if keep {
				what = "changes kept"
			}
			r.note("Busy with %d writes a second, %s: %.0f requests an hour to the store (%.0f of them puts and listings), %.1f cents an hour at the list price.",
				pace, what, puts+gets, puts, 100*(puts/1000*pricePut+gets/1000*priceGet))
		})
	}
	r.addShown(fmt.Sprintf("Changes: CPU of the leading manager a minute at %d writes a second (reference: none are kept)", pace),
		"%.2f s", cpu[0], cpu[1])
	r.addShown("Changes: its resident memory (reference: none are kept)", "%.0f MiB", memory[0], memory[1])
}
