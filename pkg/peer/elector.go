package peer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/election"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
)

// How time is dealt out to elections. A leader whose node is cut off is replaced within twice electionTicks and the time of a vote; one
// whose process ended within electionTicks and a few ticks. The lease bears the loss of one heartbeat.
const (
	tick           = 125 * time.Millisecond
	heartbeatTicks = 4  // 0.5 s
	leaseTicks     = 10 // 1.25 s
	electionTicks  = 12 // 1.5 s
)

var (
	errNotRunning = errors.New("this manager is starting or stopping")
	errResigned   = errors.New("the leadership was given up")
	errLeaseLost  = errors.New("the leadership's lease has ended")
)

// elector drives an election.Machine: it measures its time, persists what it wants persisted before anything is sent, and
// wakes only when the machine has something to do. It is safe for concurrent use.
type elector struct {
	self  cluster.NodeID
	votes VoteStore
	rand  func(int) int

	// The three are called with mu held, so they must be quick and may not call the elector.
	//
	// send hands a message to the transport.
	send func(election.Message)
	// revoke is called as soon as the node doesn't lead; often repeatedly.
	revoke func(cause error)
	// publish is called with each new state, once it is persisted.
	publish func(election.State)

	said repeat.Limiter // of votes that can't be saved

	poke chan struct{} // wakes run, as the next tick of interest has come closer

	mu      sync.Mutex
	m       *election.Machine         // nil before open
	waiting []func(*election.Machine) // put off while the machine can't be used
	closed  bool
	start   time.Time
	ticked  uint64
	// unsaved could not be persisted. Until it is, the machine rests.
	unsaved *election.Hard
	last    election.State // as published
	beatAt  uint64         // tick of the last heartbeats that were sent to all
	heardAt uint64         // tick of the last heartbeat that was heard
	wakeAt  uint64         // next tick of interest
	armedAt uint64         // tick for which run's timer is set
	turned  time.Time      // when run came round last; zero before it has begun
}

func newElector(self cluster.NodeID, votes VoteStore, rand func(int) int) *elector {
	return &elector{self: self, votes: votes, rand: rand, poke: make(chan struct{}, 1)}
}

// open loads the votes and begins.
func (e *elector) open(wanted int) error {
	hard, err := e.votes.Load()
	if err != nil {
		return fmt.Errorf("load vote: %w", err)
	}
	m, err := election.New(election.Config{
		Self: e.self, WantedMembers: wanted, HeartbeatTicks: heartbeatTicks, LeaseTicks: leaseTicks, ElectionTicks: electionTicks, Rand: e.rand,
	}, hard)
	if err != nil {
		return fmt.Errorf("begin election: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.m, e.start = m, time.Now()
	e.runWaiting()
	if _, err = e.finish(nil, election.Message{}); err != nil {
		e.said.Errorf("vote", "%v", err) // run tries again
	}
	return nil
}

// close ends the driving. Nothing is stepped, sent or published any more.
func (e *elector) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
}

// run ticks until the context ends.
func (e *elector) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.poke:
		case <-timer.C:
			e.do(func(*election.Machine) {})
		}
		e.mu.Lock()
		e.armedAt, e.turned = e.wakeAt, time.Now()
		timer.Reset(time.Until(e.start.Add(time.Duration(e.wakeAt) * tick)))
		e.mu.Unlock()
	}
}

// stalled tells whether run hasn't come round for so long. While something holds the lock, it doesn't return.
func (e *elector) stalled(patience time.Duration) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.turned.IsZero() && time.Since(e.turned) > patience
}

// do runs f on the machine, at once if it returns true. Before open, and while a vote can't be saved, f is put off until then;
// after close it is dropped.
func (e *elector) do(f func(*election.Machine)) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	sent, err := e.ready()
	if err != nil {
		e.waiting = append(e.waiting, f)
		return false
	}
	f(e.m)
	if _, err := e.finish(sent, election.Message{}); err != nil {
		e.said.Errorf("vote", "%v", err)
	}
	return true
}

// leads tells whether the node leads in this term and holds its lease at this very moment, however long the process was held up before.
func (e *elector) leads(term cluster.Term) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	sent, err := e.ready()
	if err != nil {
		return false
	}
	if _, err := e.finish(sent, election.Message{}); err != nil {
		e.said.Errorf("vote", "%v", err)
		return false
	}
	s := e.m.State()
	return s.Leads() && s.Term == term
}

// step hands a message to the machine and returns its answer. An answer may be sent: what it promises is persisted.
func (e *elector) step(msg election.Message) (*election.Message, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	sent, err := e.ready()
	if err != nil {
		return nil, err
	}
	stepErr := e.m.Step(msg)
	if msg.Kind == election.MsgHeartbeat && e.m.State().Leader == msg.From {
		e.heardAt = e.ticked
	}
	request := msg
	if msg.Kind.IsResponse() {
		request = election.Message{} // what it leads to, if anything, is a message of its own
	}
	response, err := e.finish(sent, request)
	if err != nil {
		e.said.Errorf("vote", "%v", err)
		return nil, err
	}
	return response, stepErr
}

func (e *elector) runWaiting() {
	for _, f := range e.waiting {
		f(e.m)
	}
	e.waiting = nil
}

// ready brings the machine's clock to now, and returns what it wants to send because of that. It fails if the machine
// may not be used.
func (e *elector) ready() ([]election.Message, error) {
	if e.m == nil || e.closed {
		return nil, errNotRunning
	}
	if e.unsaved != nil {
		if err := e.save(*e.unsaved); err != nil {
			e.rearm()
			return nil, err
		}
		klog.Infof("The vote in term %d is saved now", e.unsaved.Term)
		e.unsaved = nil
		e.runWaiting()
	}
	var sent []election.Message
	for owed := uint64(time.Since(e.start) / tick); e.ticked < owed; {
		e.m.Tick()
		e.ticked++
		r := e.m.Ready()
		if r.Hard != nil {
			e.unsaved = r.Hard
		}
		if len(r.Messages) == 0 {
			continue
		}
		if r.Messages[0].Kind == election.MsgHeartbeat {
			e.beatAt = e.ticked
		}
		// Of what should have been sent before, only the newest is worth sending.
		sent = r.Messages
	}
	return sent, nil
}

// finish does what the machine wants done: persist, then send. It returns the answer to the request among the messages.
func (e *elector) finish(sent []election.Message, request election.Message) (*election.Message, error) {
	r := e.m.Ready()
	if r.Hard != nil {
		e.unsaved = r.Hard
	}
	r.Messages = append(sent, r.Messages...)
	state := e.m.State()
	if !state.Leads() {
		e.revoke(errLeaseLost) // at once, not after a slow disk
	}
	if state.Role == election.Leader && e.last.Role != election.Leader {
		e.beatAt = e.ticked
	}
	if e.unsaved != nil {
		if err := e.save(*e.unsaved); err != nil {
			e.rearm()
			return nil, err
		}
		e.unsaved = nil
	}
	response, rest := r.Split(request)
	for _, m := range rest {
		e.send(m)
	}
	e.last = state
	e.publish(state)
	e.rearm()
	return response, nil
}

func (e *elector) save(h election.Hard) error {
	if err := e.votes.Save(h); err != nil {
		return fmt.Errorf("save vote in term %d: %w (until this succeeds the node votes for nobody and can't lead)", h.Term, err)
	}
	return nil
}

// rearm sets the next tick at which the machine may have something to do. Between heartbeats nothing is to be done, so
// a cluster at rest wakes its processes a few times a second, not at each tick.
func (e *elector) rearm() {
	next := e.ticked + 1
	switch {
	case e.unsaved != nil:
		next = uint64(time.Since(e.start)/tick) + heartbeatTicks // the machine's own time stands still
	case e.last.Role == election.Leader && e.last.LeaseLeft > 0:
		beat := e.beatAt + heartbeatTicks
		if beat <= e.ticked {
			beat = e.ticked + heartbeatTicks // there is nobody to send heartbeats to
		}
		next = min(beat, e.ticked+uint64(e.last.LeaseLeft))
	case e.last.Role == election.Follower && e.last.Leader != "":
		next = e.heardAt + electionTicks
	}
	e.wakeAt = max(next, e.ticked+1)
	if e.wakeAt < e.armedAt {
		select {
		case e.poke <- struct{}{}:
		default:
		}
	}
}
