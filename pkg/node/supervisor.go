package node

import (
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
)

// supervisor keeps one etcd running as the records say, and knows how it is. Methods whose comment says that procMu is held are called
// by whoever starts, stops or replaces etcd; all others may be called concurrently.
type supervisor struct {
	cfg     *Config
	l       layout
	records *records
	disk    *disk
	changes *changes
	said    *repeat.Limiter

	// procMu serializes starting and stopping etcd. It is never held during a request to etcd.
	procMu sync.Mutex

	mu       sync.Mutex // guards what follows; never held during input or output other than small files
	proc     *process.Process
	procAs   *cluster.EtcdState // the state with which proc was started
	client   *client.Client
	health   cluster.EtcdStatus
	probed   time.Time
	badSince time.Time
	lastExit string
	// overhear is true if the next etcd is to be overheard, as the one before ended soon; exitReason is what that one said, until one is healthy.
	overhear   bool
	exitReason string
	restarts   int
	startErr   string
	kick       chan struct{}
	// paused says why etcd must not be started for the moment. It is not on disk: after a restart of the manager etcd runs again.
	paused string
	// outdated is true if proc runs with other settings than it would be started with now.
	outdated bool
	// snapshotNow has the next etcd that is started write a raft snapshot at once.
	snapshotNow bool

	probeMu sync.Mutex // one probe at a time
	// looked is when watchHealth came round last, zero before it has begun; guarded by mu.
	looked time.Time
	peeked peeked // guarded by mu

	// upSince is when proc was started, answeredAt when it first answered; guarded by mu.
	upSince, answeredAt time.Time
}

func (sv *supervisor) poke() {
	select {
	case sv.kick <- struct{}{}:
	default:
	}
}

// whatRuns is the token of the data, and the pid of etcd; 0 if it doesn't run.
func (sv *supervisor) whatRuns() (token cluster.Token, pid int) {
	if s := sv.records.current(); s != nil {
		token = s.Token
	}
	sv.mu.Lock()
	defer sv.mu.Unlock()
	if sv.proc != nil {
		pid = sv.proc.PID()
	}
	return token, pid
}

// joined begins anew to count what goes wrong: what happened in an earlier membership says nothing of this one.
func (sv *supervisor) joined() {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.badSince, sv.restarts = time.Now(), 0
}

// lastStatus is LastStatus with the settings that the node was given. mu is held.
func (sv *supervisor) lastStatus(settings cluster.Settings) cluster.EtcdStatus {
	s := sv.health
	s.Running, s.Restarts = sv.proc != nil, sv.restarts
	s.Outdated = s.Running && sv.outdated
	if s.DBQuota == 0 {
		s.DBQuota = quota(sv.cfg.EtcdEnv, settings)
	}
	if !s.Healthy {
		s.UnhealthyFor = time.Since(sv.badSince)
	}
	if sv.procAs != nil {
		s.Quarantined = sv.procAs.Quarantined
	}
	switch {
	case sv.proc == nil:
		s.Error = firstNonEmpty(sv.startErr, sv.lastExit, s.Error)
	case s.Healthy:
		sv.exitReason = ""
	case sv.exitReason != "":
		s.Error = "starting again; the last time etcd ended it said: " + sv.exitReason
	}
	sv.withResources(&s)
	return s
}

// status is what was last heard of etcd; nothing is asked. settings are those that the node was given, state its state file, nil if what was
// read from the data of an etcd that isn't healthy doesn't matter.
func (sv *supervisor) status(settings cluster.Settings, state *cluster.EtcdState) cluster.EtcdStatus {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	s := sv.lastStatus(settings)
	sv.withPeeked(&s, state)
	return s
}

// runsAs is the state with which etcd was started; nil if it doesn't run.
func (sv *supervisor) runsAs() *cluster.EtcdState {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	return sv.procAs.Clone()
}

// switched begins anew with other data: how often etcd ended on those of before, and why it was kept stopped, says nothing of these.
func (sv *supervisor) switched() {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.restarts, sv.paused = 0, ""
}

// left forgets what was known of an etcd whose cluster the node has left.
func (sv *supervisor) left() {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.lastExit, sv.startErr, sv.paused, sv.health = "", "", "", cluster.EtcdStatus{}
}
