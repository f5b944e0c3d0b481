package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// reattachPatience is how long what isn't an etcd may hold the data dir: a child of the earlier manager that is being killed as well.
const reattachPatience = 5 * time.Second

// reattach takes over an etcd that outlived an earlier manager. One that should have been stopped for a restore, when that manager was
// killed, is stopped now.
func (sv *supervisor) reattach(ctx context.Context) error {
	s, holding := sv.records.current(), sv.records.holding()
	if s == nil {
		return nil
	}
	sv.procMu.Lock()
	defer sv.procMu.Unlock()
	p, err := process.Reattach(sv.l.pid(), sv.l.data(s.Token))
	deadline := time.Now().Add(reattachPatience)
	for errors.Is(err, etcd.ErrDataDirInUse) && time.Now().Before(deadline) && sleep(ctx, 100*time.Millisecond) {
		p, err = process.Reattach(sv.l.pid(), sv.l.data(s.Token))
	}
	if err != nil {
		return fmt.Errorf("reattach to the running etcd: %w", err)
	}
	if p == nil {
		return nil
	}
	p.Overhear(sv.cfg.Stderr)
	// Which client URLs it listens on can only be told by comparing with what would be started.
	as := s.Clone()
	if cmd, err := sv.commandLine(as); err == nil && p.Info().Fingerprint != cmd.Fingerprint {
		as.Quarantined = !as.Quarantined
		if other, err := sv.commandLine(as); err != nil || p.Info().Fingerprint != other.Fingerprint {
			as.Quarantined = s.Quarantined
			if told := sv.startedAs(s, p.Info().Argv); told != nil {
				as = told
			}
			klog.Warningf("the etcd with pid %d was started with other settings; they are kept until the leader restarts it in its turn", p.PID())
		}
	}
	if !holding {
		klog.Infof("reattached to the running etcd (pid %d, cluster %s), which continues to serve", p.PID(), s.Token)
		if err := sv.took(p, as); err != nil {
			return err
		}
		sv.noteOutdated()
		return nil
	}
	if err := sv.took(p, as); err != nil {
		return err
	}
	if err := sv.stopLocked(ctx, "it is held for a restore", stopHard); err != nil {
		klog.Errorf("%v; the leader asks for it again", err)
	}
	return nil
}

// took remembers a running process. procMu is held.
func (sv *supervisor) took(p *process.Process, as *cluster.EtcdState) error {
	c, err := sv.dial(as)
	if err != nil {
		return fmt.Errorf("connect to etcd: %w", err)
	}
	sv.mu.Lock()
	defer sv.mu.Unlock()
	if sv.client != nil {
		sv.client.Close()
	}
	sv.proc, sv.procAs, sv.client, sv.startErr, sv.lastExit = p, as, c, "", ""
	sv.health, sv.probed = cluster.EtcdStatus{}, time.Time{}
	sv.answeredAt, sv.upSince = time.Time{}, time.Now()
	if p.Adopted() {
		sv.upSince = sv.upSince.Add(min(0, -time.Since(p.Info().Started)))
	}
	if sv.badSince.IsZero() {
		sv.badSince = time.Now()
	}
	sv.changes.note()
	return nil
}

// ready tells whether the data dir can be trusted to be the node's.
func (c *Config) ready() error {
	if c.Ready == nil {
		return nil
	}
	if err := c.Ready(); err != nil {
		return fmt.Errorf("data dir %s: %w; nothing is written to it", c.DataDir, err)
	}
	return nil
}

// startLocked makes etcd run in the current state; with restart a process that runs otherwise is stopped first. procMu is held.
func (sv *supervisor) startLocked(ctx context.Context, restart bool) error {
	s, holding, empty := sv.records.current(), sv.records.holding(), sv.records.journaled().MayBeEmpty
	sv.mu.Lock()
	p, paused, well := sv.proc, sv.paused != "", sv.health.Healthy
	sv.mu.Unlock()
	if s == nil || holding || paused || p != nil && !restart {
		return nil
	}
	if err := sv.cfg.ready(); err != nil {
		return err
	}
	if p == nil && (sv.records.dataLost(s.Token) || empty != s.Token && !sv.l.hasMember(s.Token)) {
		return sv.records.errDataLost(s.Token)
	}
	cmd, err := sv.commandLine(s)
	if err != nil {
		return err
	}
	if p != nil {
		if p.Info().Fingerprint == cmd.Fingerprint {
			return nil
		}
		if err := sv.stopLocked(ctx, "its settings change", stopServing); err != nil {
			return err
		}
	}
	if !sv.l.hasMember(s.Token) {
		if err := sv.records.firstStart(s.Token); err != nil {
			return err
		}
	}
	sv.mu.Lock()
	overhear := sv.overhear
	sv.mu.Unlock()
	p, err = process.Start(cmd, process.StartOptions{PIDFile: sv.l.pid(), Stdout: sv.cfg.Stdout, Stderr: sv.cfg.Stderr, Overhear: overhear})
	if err != nil {
		return err
	}
	if cmd.Version != s.EtcdVersion {
		sv.said.Warningf("in place of "+s.EtcdVersion, "etcd %s runs in place of %s, which isn't installed on this node",
			cmd.Version, s.EtcdVersion)
	}
	sv.said.Infof("started "+cmd.Version, "started etcd %s (pid %d, cluster %s%s)", cmd.Version, p.PID(), s.Token,
		map[bool]string{true: ", quarantined"}[s.Quarantined])
	if err := sv.took(p, s); err != nil {
		return err
	}
	sv.mu.Lock()
	sv.outdated = false
	if well { // how long it took to end says nothing of how it is
		sv.badSince = time.Now()
	}
	sv.mu.Unlock()
	sv.poke()
	if s.NewCluster && empty == s.Token {
		sv.awaitPeerServer(ctx, p, cmd, s)
	}
	return nil
}

// awaitPeerServer waits until a founder answers on its peer URL. etcd asks its peers before it bootstraps, and waits a second for
// each one whose port is open but not served yet; founders that start one after the other don't wait for each other.
func (sv *supervisor) awaitPeerServer(ctx context.Context, p *process.Process, cmd process.CommandLine, s *cluster.EtcdState) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	self := s.Node(sv.cfg.Self.Name)
	urls, err := listenOn(self.PeerURLs, localHost(sv.cfg.ListenAddress))
	if err != nil || len(urls) == 0 {
		return
	}
	u, err := url.Parse(urls[0])
	if err != nil {
		return
	}
	for ctx.Err() == nil {
		if peerServes(u) {
			return
		}
		select {
		case <-p.Done():
			return
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
	}
	klog.V(2).Infof("etcd %s doesn't serve %s yet", cmd.Version, u)
}

// peerServes tells whether anything is answered; a refused certificate is an answer too.
func peerServes(u *url.URL) bool {
	const patience = 150 * time.Millisecond
	c, err := net.DialTimeout("tcp", u.Host, patience)
	if err != nil {
		return false
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return false
	}
	if u.Scheme == "https" {
		err = tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake()
	} else {
		if _, err = c.Write([]byte("GET /version HTTP/1.0\r\n\r\n")); err == nil {
			_, err = c.Read(make([]byte, 1))
		}
	}
	var timeout net.Error
	return !errors.As(err, &timeout) || !timeout.Timeout()
}

// shortRun is a run after which the next start of etcd waits, and is overheard.
const shortRun = 30 * time.Second

// supervise starts etcd again whenever it ended without being asked.
func (sv *supervisor) supervise(ctx context.Context) {
	delay := time.Duration(0)
	var started time.Time
	for {
		sv.mu.Lock()
		p := sv.proc
		sv.mu.Unlock()
		if p == nil {
			if !sleep(ctx, delay) {
				return
			}
			err := sv.start(ctx)
			sv.mu.Lock()
			p = sv.proc
			sv.setStartError(err)
			sv.mu.Unlock()
			started = time.Now()
			if p == nil {
				if err != nil {
					delay = nextDelay(delay)
				}
				select {
				case <-ctx.Done():
					return
				case <-sv.kick:
				case <-time.After(max(delay, time.Second)):
				}
				continue
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-sv.kick:
		case <-p.Done():
			sv.mu.Lock()
			unasked := sv.proc == p && !p.Exit().Asked
			if unasked {
				sv.restarts++
				sv.overhear = p.Exit().After < shortRun
			}
			sv.mu.Unlock()
			if !unasked {
				sv.forgetEnded(p)
				continue
			}
			key := "exit"
			if p.Exit().Reason != "" {
				key = "exit with a reason" // which isn't kept back because the one before had none
			}
			sv.said.Errorf(key, "etcd (pid %d) %s; starting it again", p.PID(), p.Exit())
			sv.gone(p, "etcd "+p.Exit().String())
			sv.mu.Lock()
			sv.exitReason = p.Exit().Reason
			sv.mu.Unlock()
			if time.Since(started) > shortRun {
				delay = 0
			} else {
				delay = nextDelay(delay)
			}
		}
	}
}

// forgetEnded waits for who has stopped a process. If it took so long that they have given up, it is forgotten here.
func (sv *supervisor) forgetEnded(p *process.Process) {
	sv.procMu.Lock()
	defer sv.procMu.Unlock()
	sv.gone(p, "etcd "+p.Exit().String())
}

// setStartError remembers why etcd couldn't be started, and says so once. mu is held.
func (sv *supervisor) setStartError(err error) {
	if err == nil {
		sv.startErr = ""
		return
	}
	if err = sv.disk.name(err); sv.startErr != err.Error() {
		sv.startErr = err.Error()
		sv.said.Errorf("start", "etcd can't be started: %v", err)
		sv.changes.note()
	}
}

func (sv *supervisor) start(ctx context.Context) error {
	sv.procMu.Lock()
	defer sv.procMu.Unlock()
	sv.mu.Lock()
	running := sv.proc != nil
	sv.mu.Unlock()
	if running {
		return nil
	}
	return sv.startLocked(ctx, true)
}

// nextDelay is nothing for the first restart, then 200 ms doubling up to 5 s.
func nextDelay(d time.Duration) time.Duration {
	if d == 0 {
		return 200 * time.Millisecond
	}
	return min(2*d, 5*time.Second)
}

func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
