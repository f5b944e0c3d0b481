package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// applySettings puts what the operator has chosen into etcd's configuration. The manager's own flags and the user's ETCD_ variables win.
func applySettings(cfg *etcd.Config, s cluster.Settings) {
	number := func(name string) int64 {
		n, err := strconv.ParseInt(s[name], 10, 64)
		if err != nil {
			return 0
		}
		return n
	}
	cfg.QuotaBytes = number(cluster.SettingQuota)
	cfg.SnapshotCount = uint64(number(cluster.SettingSnapshotCount))
	cfg.Heartbeat = time.Duration(number(cluster.SettingHeartbeat)) * time.Millisecond
	cfg.ElectionTimeout = time.Duration(number(cluster.SettingElection)) * time.Millisecond
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = s[cluster.SettingCompactionMode], s[cluster.SettingCompactionRetention]
	if urls := s[cluster.SettingMetricsURLs]; urls != "" && cfg.ListenMetricsURLs == nil {
		cfg.ListenMetricsURLs = strings.Split(urls, ",")
	}
}

// provable makes sure that what is to run can run, before what runs is stopped or the state file names it: the binary is there, and tells its
// version.
func (a *Agent) provable(s *cluster.EtcdState) error {
	if now := a.records.current(); now != nil && now.EtcdVersion == s.EtcdVersion {
		return nil
	}
	if _, err := a.cfg.Binaries.Nearest(s.EtcdVersion); err != nil {
		return fmt.Errorf("what runs is left alone: %w", err)
	}
	return nil
}

// noteOutdated finds out whether the process runs as it would be started now. procMu is held.
func (sv *supervisor) noteOutdated() {
	s := sv.records.current()
	sv.mu.Lock()
	p := sv.proc
	sv.mu.Unlock()
	outdated := false
	if p != nil && s != nil {
		cmd, err := sv.commandLine(s)
		outdated = err == nil && p.Info().Fingerprint != cmd.Fingerprint
	}
	sv.mu.Lock()
	defer sv.mu.Unlock()
	if sv.outdated != outdated {
		sv.outdated = outdated
		sv.changes.note()
	}
}

// startedAs is the state with which an etcd was started, as far as its command line tells: the flags of today may name other URLs, or TLS
// where it was started without.
func (sv *supervisor) startedAs(s *cluster.EtcdState, argv []string) *cluster.EtcdState {
	as := s.Clone()
	self := as.Node(sv.cfg.Self.Name)
	value := func(name string) []string {
		for _, w := range argv {
			if v, ok := strings.CutPrefix(w, "--"+name+"="); ok && v != "" {
				return strings.Split(v, ",")
			}
		}
		return nil
	}
	peers, clients := value("initial-advertise-peer-urls"), value("advertise-client-urls")
	if self == nil || peers == nil || clients == nil {
		return nil
	}
	self.PeerURLs, self.TLS = peers, value("cert-file") != nil
	as.Quarantined = samePorts(clients, self.QuarantinedClientURLs)
	if as.Quarantined {
		self.QuarantinedClientURLs = clients
	} else {
		self.ClientURLs = clients
	}
	return as
}

func samePorts(a, b []string) bool {
	port := func(s string) string {
		u, err := url.Parse(s)
		if err != nil {
			return s
		}
		return u.Port()
	}
	return slices.EqualFunc(a, b, func(x, y string) bool { return port(x) == port(y) })
}

// defragment rewrites the database. The leadership moves away first, as this etcd answers nobody meanwhile.
func (sv *supervisor) defragment(ctx context.Context) error {
	sv.mu.Lock()
	s, c := sv.procAs.Clone(), sv.client
	sv.mu.Unlock()
	if s == nil {
		return fmt.Errorf("etcd isn't running here")
	}
	moveLeader(ctx, c)
	own, err := sv.dial(s) // a connection of its own: a health check must not wait behind it
	if err != nil {
		return err
	}
	defer own.Close()
	before, err := own.Status(ctx)
	if err != nil {
		return err
	}
	started := time.Now()
	limit := rewriteTime(before.DBSize)
	dctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("etcd hasn't rewritten its database of %d MiB in %s", before.DBSize>>20, limit))
	defer cancel()
	if err := own.Defragment(dctx); err != nil {
		if dctx.Err() != nil {
			return context.Cause(dctx)
		}
		return err
	}
	after, err := own.Status(ctx)
	if err != nil {
		return err
	}
	klog.Infof("defragmented etcd's database: %d MiB before, %d MiB now, took %s", before.DBSize>>20, after.DBSize>>20, time.Since(started).Round(time.Millisecond))
	sv.probe(ctx, 0)
	return nil
}

// rewriteTime is how long etcd may take to rewrite its database; what takes longer hangs, and this node has other things to do.
func rewriteTime(size int64) time.Duration {
	const bytesPerSecond = 10 << 20
	return 2*time.Minute + time.Duration(size/bytesPerSecond)*time.Second
}

// usualQuota is etcd's own bound of the database.
const usualQuota = 2 << 30

// quota is how large the database may become, where etcd doesn't tell (before 3.6).
func quota(env map[string]string, settings cluster.Settings) int64 {
	if n, err := strconv.ParseInt(env["ETCD_QUOTA_BACKEND_BYTES"], 10, 64); err == nil && n > 0 {
		return n
	}
	if n := settings.Quota(); n > 0 {
		return n
	}
	return usualQuota
}

// stopMember stops etcd at once and keeps it stopped.
func (sv *supervisor) stopMember(ctx context.Context, reason string) error {
	sv.procMu.Lock()
	defer sv.procMu.Unlock()
	sv.setPaused(reason)
	return sv.stopLocked(ctx, reason, stopAtOnce)
}

func (sv *supervisor) setPaused(why string) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.paused = why
}

// digest stands for the content of a file; it is empty if there is none.
func digest(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

// settingsPoll is how often it is looked whether etcd still runs as it would be started: the trusted CAs may have changed.
const settingsPoll = 15 * time.Second

// watchSettings looks until ctx ends.
func (sv *supervisor) watchSettings(ctx context.Context) {
	for sleep(ctx, settingsPoll) {
		sv.procMu.Lock()
		sv.noteOutdated()
		sv.procMu.Unlock()
	}
}
