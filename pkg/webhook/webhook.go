// Package webhook tells other programs what happens to a cluster: each event is sent as JSON to every URL by HTTP POST, in order, signed if
// there is a secret. What can't be delivered is tried again for a while, and then dropped: the events in the store are the record.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
)

// SignatureHeader is "t=SECONDS,v1=HEX": when it was sent, in seconds since 1970, and the HMAC-SHA-256, with the secret as the key, of
// these seconds, a dot and the body.
const SignatureHeader = "X-Etcd-Manager-Signature"

// Bounds of deliveries.
const (
	// maxQueue is how many events wait for one URL; the oldest is dropped for a newer one.
	maxQueue = 100
	// maxAge is for how long the delivery of an event is tried.
	maxAge     = time.Hour
	firstDelay = time.Second
	lastDelay  = 5 * time.Minute
	timeout    = 10 * time.Second
	maxAnswer  = 4 << 10 // bytes of an answer that are read
	MinSecret  = 16
)

// Config says who is told.
type Config struct {
	ClusterName string
	// Store is the URL of the backup store, which tells clusters of one name apart.
	Store string
	// URLs are http or https. They may contain a token, so only their hosts are ever logged.
	URLs []string
	// Secret signs; empty for none. It has at least 16 bytes.
	Secret []byte
	// Client sends; nil for one with bounds of its own, which follows no redirects.
	Client *http.Client
}

// Sender sends events. Its methods may be called at the same time.
type Sender struct {
	mu      sync.Mutex
	targets []*target
	// ctx is that of Run; nil before and after it.
	ctx context.Context
	wg  sync.WaitGroup
}

// New checks a configuration. It starts nothing. An error names the host of a URL that can't be used, and not the URL.
func New(c Config) (*Sender, error) {
	targets, err := newTargets(c)
	if err != nil {
		return nil, err
	}
	return &Sender{targets: targets}, nil
}

// Become sends to whom another Sender, which was not run, would send. A URL that both have keeps what waits for it, unless its events are
// signed otherwise or say another store from now on.
func (s *Sender) Become(other *Sender) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var next []*target
	old := slices.Clone(s.targets)
	for _, t := range other.targets {
		i := slices.IndexFunc(old, func(o *target) bool { return o.like(t) })
		if i < 0 {
			next = append(next, t)
			s.start(t)
			continue
		}
		next = append(next, old[i])
		old = slices.Delete(old, i, i+1)
	}
	for _, t := range old {
		t.stop()
	}
	s.targets = next
}

// start has a target deliver. mu is held.
func (s *Sender) start(t *target) {
	if s.ctx == nil {
		return // Run does, or has ended
	}
	ctx, stop := context.WithCancel(s.ctx)
	t.stop = stop
	s.wg.Go(func() { t.run(ctx) })
}

func (s *Sender) all() []*target {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.targets
}

func newTargets(c Config) ([]*target, error) {
	if len(c.Secret) > 0 && len(c.Secret) < MinSecret {
		return nil, fmt.Errorf("the secret for webhooks has %d bytes: use at least %d", len(c.Secret), MinSecret)
	}
	if c.Client == nil {
		noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		c.Client = &http.Client{Timeout: timeout, CheckRedirect: noRedirect}
	}
	var targets []*target
	for i, raw := range c.URLs {
		u, err := url.Parse(raw)
		switch {
		case err != nil:
			return nil, fmt.Errorf("webhook URL number %d is not a valid URL", i+1)
		case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
			return nil, fmt.Errorf("webhook URL number %d (scheme %q, host %q) must begin with https:// or http:// and name a host",
				i+1, u.Scheme, u.Host)
		}
		targets = append(targets, &target{config: c, url: raw, host: u.Host, news: make(chan struct{}, 1), stop: func() {}})
	}
	return targets, nil
}

// Tell sends an event that somebody may wait for to all URLs, beside the caller. It returns at once.
func (s *Sender) Tell(e catalog.Event) {
	if !wanted(e) {
		return
	}
	for _, t := range s.all() {
		t.add(e)
	}
}

// Run delivers until ctx ends. What waits then is not sent any more.
func (s *Sender) Run(ctx context.Context) {
	s.mu.Lock()
	s.ctx = ctx
	for _, t := range s.targets {
		s.start(t)
	}
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.ctx = nil // nothing is started any more
	s.mu.Unlock()
	s.wg.Wait()
}

// wanted tells which events are sent: what was asked for begins and ends, what fails, and what a person is needed for.
func wanted(e catalog.Event) bool {
	switch e.Kind {
	case catalog.EventRestore, catalog.EventPutBack, catalog.EventAttention:
		return true
	case catalog.EventBackup:
		return e.Phase == catalog.EventFailed
	}
	return false
}

// Message is the body of a request.
type Message struct {
	// Version is 1. Fields may be added; it is raised if one changes its meaning.
	Version int `json:"version"`
	// ID is the same if the same event is sent again, because an answer was lost.
	ID          string `json:"id"`
	ClusterName string `json:"clusterName"`
	// Store is the backup store's URL.
	Store string `json:"store"`
	// What is "begun", "done", "failed", "needs-you" or "over".
	What  string        `json:"what"`
	Event catalog.Event `json:"event"`
}

func (c *Config) messageOf(e catalog.Event) Message {
	what := string(e.Phase)
	if e.Kind == catalog.EventAttention {
		what = map[catalog.EventPhase]string{catalog.EventBegun: "needs-you", catalog.EventDone: "over"}[e.Phase]
	}
	return Message{Version: 1, ID: fmt.Sprintf("%s-%d", e.Node, e.At.UnixNano()), ClusterName: c.ClusterName, Store: c.Store, What: what, Event: e}
}

// target is one URL with what waits for it.
type target struct {
	config Config
	url    string
	host   string
	news   chan struct{}
	said   repeat.Limiter
	stop   func() // ends run

	mu      sync.Mutex
	waiting []catalog.Event
	// delivered and dropped count events; trying is true while one that isn't in waiting any more is being delivered.
	delivered, dropped int64
	trying             bool
}

// Count is what became of the events for one URL since the start of this process.
type Count struct {
	// Number is that of the URL in the configuration, from 1 on, and Host its host: the URL itself may have a token.
	Number int    `json:"number"`
	Host   string `json:"host"`
	// Delivered were received. Dropped were refused, tried for too long, or too many. Waiting are still to be delivered.
	Delivered int64 `json:"delivered"`
	Dropped   int64 `json:"dropped"`
	Waiting   int   `json:"waiting"`
}

// Counts are in the order of the URLs. A nil Sender has none.
func (s *Sender) Counts() []Count {
	if s == nil {
		return nil
	}
	var list []Count
	for i, t := range s.all() {
		t.mu.Lock()
		c := Count{Number: i + 1, Host: t.host, Delivered: t.delivered, Dropped: t.dropped, Waiting: len(t.waiting)}
		if t.trying {
			c.Waiting++
		}
		t.mu.Unlock()
		list = append(list, c)
	}
	return list
}

// like tells whether two targets send the same to the same URL.
func (t *target) like(o *target) bool {
	return t.url == o.url && bytes.Equal(t.config.Secret, o.config.Secret) && t.config.Store == o.config.Store &&
		t.config.ClusterName == o.config.ClusterName
}

// ended counts what became of the event that was being delivered.
func (t *target) ended(delivered bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.trying = false; delivered {
		t.delivered++
	} else {
		t.dropped++
	}
}

func (t *target) add(e catalog.Event) {
	t.mu.Lock()
	if len(t.waiting) >= maxQueue {
		t.dropped++
		t.waiting = append(t.waiting[:0], t.waiting[1:]...)
		t.said.Warningf("full", "webhook at %s: more than %d events wait, the oldest are dropped", t.host, maxQueue)
	}
	t.waiting = append(t.waiting, e)
	t.mu.Unlock()
	select {
	case t.news <- struct{}{}:
	default:
	}
}

func (t *target) next() (catalog.Event, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		return catalog.Event{}, false
	}
	e := t.waiting[0]
	t.waiting = append(t.waiting[:0], t.waiting[1:]...)
	t.trying = true
	return e, true
}

func (t *target) run(ctx context.Context) {
	for {
		e, ok := t.next()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-t.news:
			}
			continue
		}
		if !t.deliver(ctx, e) {
			return
		}
	}
}

// refusedError is an answer after which another attempt is of no use.
type refusedError struct{ status string }

func (e *refusedError) Error() string { return "it answers " + e.status }

// deliver tries until the event is delivered, refused or too old. It returns false if ctx has ended.
func (t *target) deliver(ctx context.Context, e catalog.Event) bool {
	body, err := json.Marshal(t.config.messageOf(e))
	if err != nil {
		t.said.Errorf("encode", "webhook at %s: the event can't be encoded: %v", t.host, err)
		t.ended(false)
		return true
	}
	for delay := firstDelay; ; delay = min(2*delay, lastDelay) {
		err := t.post(ctx, body)
		if ctx.Err() != nil {
			return false
		}
		var refused *refusedError
		switch {
		case err == nil:
			t.ended(true)
			return true
		case errors.As(err, &refused):
			t.said.Warningf("refused", "webhook at %s: %v; this event is not sent again", t.host, err)
			t.ended(false)
			return true
		case time.Since(e.At) > maxAge:
			t.said.Warningf("given up", "webhook at %s: an event could not be delivered for %s and is dropped: %v", t.host, maxAge, err)
			t.ended(false)
			return true
		}
		t.said.Warningf("failed", "webhook at %s: not delivered, next attempt in %s: %v", t.host, delay, err)
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
}

// post sends once. No error has the URL in it.
func (t *target) post(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, bytes.NewReader(body))
	if err != nil {
		return errors.New("the request can't be made of this URL")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "etcd-manager")
	if len(t.config.Secret) > 0 {
		req.Header.Set(SignatureHeader, Signature(t.config.Secret, time.Now(), body))
	}
	resp, err := t.config.Client.Do(req)
	if err != nil {
		if u := new(url.Error); errors.As(err, &u) {
			err = u.Err
		}
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) // so that the connection is used again
	switch code := resp.StatusCode; {
	case code >= 200 && code < 300:
		return nil
	case code >= 500, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		return fmt.Errorf("it answers %s", statusText(code))
	default:
		return &refusedError{statusText(code)}
	}
}

func statusText(code int) string {
	return cluster.Shown(strconv.Itoa(code)+" "+http.StatusText(code), 100)
}

// Signature is the value of SignatureHeader.
func Signature(secret []byte, at time.Time, body []byte) string {
	seconds := strconv.FormatInt(at.Unix(), 10)
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(seconds + "."))
	h.Write(body)
	return "t=" + seconds + ",v1=" + hex.EncodeToString(h.Sum(nil))
}
