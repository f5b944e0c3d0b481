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

// adoptPatience is how long what isn't an etcd may hold the data dir: a child of the earlier manager that is being killed as well.
const adoptPatience = 5 * time.Second

// adopt takes over an etcd that outlived an earlier manager. One that should have been stopped for a restore, when that manager was killed, is
// stopped now.
func (a *Agent) adopt(ctx context.Context) error {
	s, holding := a.records.current(), a.records.holding()
	if s == nil {
		return nil
	}
	a.procMu.Lock()
	defer a.procMu.Unlock()
	p, err := process.Reattach(a.l.pid(), a.l.data(s.Token))
	for deadline := time.Now().Add(adoptPatience); errors.Is(err, etcd.ErrDataDirInUse) && time.Now().Before(deadline) && sleep(ctx, 100*time.Millisecond); {
		p, err = process.Reattach(a.l.pid(), a.l.data(s.Token))
	}
	if err != nil {
		return fmt.Errorf("adopt the running etcd: %w", err)
	}
	if p == nil {
		return nil
	}
	p.Overhear(a.cfg.Stderr)
	// Which client URLs it listens on can only be told by comparing with what would be started.
	as := s.Clone()
	if cmd, err := a.commandLine(as); err == nil && p.Info().Fingerprint != cmd.Fingerprint {
		as.Quarantined = !as.Quarantined
		if other, err := a.commandLine(as); err != nil || p.Info().Fingerprint != other.Fingerprint {
			as.Quarantined = s.Quarantined
			if told := a.startedAs(s, p.Info().Argv); told != nil {
				as = told
			}
			klog.Warningf("the etcd with pid %d was started with other settings; they are kept until the leader restarts it in its turn", p.PID())
		}
	}
	if !holding {
		klog.Infof("adopted the running etcd (pid %d, cluster %s); it goes on serving", p.PID(), s.Token)
		if err := a.took(p, as); err != nil {
			return err
		}
		a.noteOutdated()
		return nil
	}
	if err := a.took(p, as); err != nil {
		return err
	}
	if err := a.stopLocked(ctx, "it is held for a restore", stopHard); err != nil {
		klog.Errorf("%v; the leader asks for it again", err)
	}
	return nil
}

// took remembers a running process. procMu is held.
func (a *Agent) took(p *process.Process, as *cluster.EtcdState) error {
	c, err := a.dial(as)
	if err != nil {
		return fmt.Errorf("connect to etcd: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client != nil {
		a.client.Close()
	}
	a.proc, a.procAs, a.client, a.startErr, a.lastExit = p, as, c, "", ""
	a.health, a.probed = cluster.EtcdStatus{}, time.Time{}
	a.answeredAt, a.upSince = time.Time{}, time.Now()
	if p.Adopted() {
		a.upSince = a.upSince.Add(min(0, -time.Since(p.Info().Started)))
	}
	if a.badSince.IsZero() {
		a.badSince = time.Now()
	}
	a.changes.note()
	return nil
}

// ready tells whether the data dir can be trusted to be the node's.
func (a *Agent) ready() error {
	if a.cfg.Ready == nil {
		return nil
	}
	if err := a.cfg.Ready(); err != nil {
		return fmt.Errorf("data dir %s: %w; nothing is written to it", a.cfg.DataDir, err)
	}
	return nil
}

// startLocked makes etcd run in the current state; with restart a process that runs otherwise is stopped first. procMu is held.
func (a *Agent) startLocked(ctx context.Context, restart bool) error {
	s, holding, empty := a.records.current(), a.records.holding(), a.records.journaled().MayBeEmpty
	a.mu.Lock()
	p, paused, well := a.proc, a.paused != "", a.health.Healthy
	a.mu.Unlock()
	if s == nil || holding || paused || p != nil && !restart {
		return nil
	}
	if err := a.ready(); err != nil {
		return err
	}
	if p == nil && (a.records.dataLost(s.Token) || empty != s.Token && !a.l.hasMember(s.Token)) {
		return a.records.errDataLost(s.Token)
	}
	cmd, err := a.commandLine(s)
	if err != nil {
		return err
	}
	if p != nil {
		if p.Info().Fingerprint == cmd.Fingerprint {
			return nil
		}
		if err := a.stopLocked(ctx, "its settings change", stopServing); err != nil {
			return err
		}
	}
	if !a.l.hasMember(s.Token) {
		if err := a.records.firstStart(s.Token); err != nil {
			return err
		}
	}
	a.mu.Lock()
	overhear := a.overhear
	a.mu.Unlock()
	p, err = process.Start(cmd, process.StartOptions{PIDFile: a.l.pid(), Stdout: a.cfg.Stdout, Stderr: a.cfg.Stderr, Overhear: overhear})
	if err != nil {
		return err
	}
	if cmd.Version != s.EtcdVersion {
		klog.Warningf("etcd %s runs in place of %s, which isn't installed on this node", cmd.Version, s.EtcdVersion)
	}
	a.said.Infof("started "+cmd.Version, "started etcd %s (pid %d, cluster %s%s)", cmd.Version, p.PID(), s.Token, map[bool]string{true: ", quarantined"}[s.Quarantined])
	if err := a.took(p, s); err != nil {
		return err
	}
	a.mu.Lock()
	a.outdated = false
	if well { // how long it took to end says nothing of how it is
		a.badSince = time.Now()
	}
	a.mu.Unlock()
	a.poke()
	if s.NewCluster && empty == s.Token {
		a.awaitPeerServer(ctx, p, cmd, s)
	}
	return nil
}

// awaitPeerServer waits until a founder answers on its peer URL. etcd asks its peers before it bootstraps, and waits a second for
// each one whose port is open but not served yet; founders that start one after the other don't wait for each other.
func (a *Agent) awaitPeerServer(ctx context.Context, p *process.Process, cmd process.CommandLine, s *cluster.EtcdState) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	self := s.Node(a.cfg.Self.Name)
	urls, err := listenOn(self.PeerURLs, localHost(a.cfg.ListenAddress))
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
func (a *Agent) supervise(ctx context.Context) {
	delay := time.Duration(0)
	var started time.Time
	for {
		a.mu.Lock()
		p := a.proc
		a.mu.Unlock()
		if p == nil {
			if !sleep(ctx, delay) {
				return
			}
			err := a.start(ctx)
			a.mu.Lock()
			p = a.proc
			a.setStartError(err)
			a.mu.Unlock()
			started = time.Now()
			if p == nil {
				if err != nil {
					delay = nextDelay(delay)
				}
				select {
				case <-ctx.Done():
					return
				case <-a.kick:
				case <-time.After(max(delay, time.Second)):
				}
				continue
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-a.kick:
		case <-p.Done():
			a.mu.Lock()
			unasked := a.proc == p && !p.Exit().Asked
			if unasked {
				a.restarts++
				a.overhear = p.Exit().After < shortRun
			}
			a.mu.Unlock()
			if !unasked {
				a.forgetEnded(p)
				continue
			}
			key := "exit"
			if p.Exit().Reason != "" {
				key = "exit with a reason" // which isn't kept back because the one before had none
			}
			a.said.Errorf(key, "etcd (pid %d) %s; starting it again", p.PID(), p.Exit())
			a.gone(p, "etcd "+p.Exit().String())
			a.mu.Lock()
			a.exitReason = p.Exit().Reason
			a.mu.Unlock()
			if time.Since(started) > shortRun {
				delay = 0
			} else {
				delay = nextDelay(delay)
			}
		}
	}
}

// forgetEnded waits for who has stopped a process. If it took so long that they have given up, it is forgotten here.
func (a *Agent) forgetEnded(p *process.Process) {
	a.procMu.Lock()
	defer a.procMu.Unlock()
	a.gone(p, "etcd "+p.Exit().String())
}

// setStartError remembers why etcd couldn't be started, and says so once. mu is held.
func (a *Agent) setStartError(err error) {
	if err == nil {
		a.startErr = ""
		return
	}
	if err = a.disk.name(err); a.startErr != err.Error() {
		a.startErr = err.Error()
		a.said.Errorf("start", "etcd can't be started: %v", err)
		a.changes.note()
	}
}

func (a *Agent) start(ctx context.Context) error {
	a.procMu.Lock()
	defer a.procMu.Unlock()
	a.mu.Lock()
	running := a.proc != nil
	a.mu.Unlock()
	if running {
		return nil
	}
	return a.startLocked(ctx, true)
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
