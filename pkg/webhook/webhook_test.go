package webhook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

const secret = "a secret of the receiver"

// receiver is a server that answers as it is told, and notes what came.
type receiver struct {
	*httptest.Server
	mu       sync.Mutex
	answers  []int
	requests []string
	came     chan struct{}
}

func newReceiver(t *testing.T, answers ...int) *receiver {
	r := &receiver{answers: answers, came: make(chan struct{}, 1000)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Error(err)
		}
		parts := strings.Split(req.Header.Get(SignatureHeader), ",")
		if len(parts) == 2 {
			h := hmac.New(sha256.New, []byte(secret))
			fmt.Fprintf(h, "%s.%s", strings.TrimPrefix(parts[0], "t="), body)
			if parts[1] != "v1="+hex.EncodeToString(h.Sum(nil)) {
				t.Errorf("signature %q doesn't fit", req.Header.Get(SignatureHeader))
			}
		}
		var m Message
		if err := json.Unmarshal(body, &m); err != nil || req.Method != http.MethodPost || m.Store != "s3://b/main" {
			t.Errorf("%s %q: %v", req.Method, body, err)
		}
		r.mu.Lock()
		signed := map[bool]string{true: "signed", false: "plain"}[len(parts) == 2]
		r.requests = append(r.requests, fmt.Sprintf("%s %s %s", m.What, m.Event.Text, signed))
		code := http.StatusOK
		if len(r.answers) > 0 {
			code, r.answers = r.answers[0], r.answers[1:]
		}
		r.mu.Unlock()
		if code == http.StatusFound {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(code)
		r.came <- struct{}{}
	}))
	t.Cleanup(r.Close)
	return r
}

// wait waits for so many requests, and returns all that came.
func (r *receiver) wait(t *testing.T, n int) []string {
	t.Helper()
	for range n {
		select {
		case <-r.came:
		case <-time.After(time.Minute):
			t.Fatalf("only %v came", r.requests)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string{}, r.requests...)
}

func start(t *testing.T, c Config) *Sender {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

func event(kind catalog.EventKind, phase catalog.EventPhase, text string) catalog.Event {
	return catalog.Event{At: time.Now(), Node: "a", Kind: kind, Phase: phase, Text: text}
}

// TestDelivery: in order, to all, signed; an answer of trouble is tried again, a refusal isn't, and a redirect isn't followed.
func TestDelivery(t *testing.T) {
	first, second := newReceiver(t, 503, 200, 400, 302, 200), newReceiver(t)
	s := start(t, Config{ClusterName: "main", Store: "s3://b/main",
		URLs: []string{first.URL + "/token", second.URL}, Secret: []byte(secret)})
	s.Tell(event(catalog.EventRestore, catalog.EventBegun, "1"))
	s.Tell(event(catalog.EventDecision, "", "not sent"))
	s.Tell(event(catalog.EventBackup, catalog.EventDone, "not sent"))
	s.Tell(event(catalog.EventBackup, catalog.EventFailed, "2"))
	s.Tell(event(catalog.EventAttention, catalog.EventBegun, "3"))
	s.Tell(event(catalog.EventAttention, catalog.EventDone, "4"))
	got := strings.Join(first.wait(t, 5), ", ")
	if want := "begun 1 signed, begun 1 signed, failed 2 signed, needs-you 3 signed, over 4 signed"; got != want {
		t.Errorf("the first got %s; want %s", got, want)
	}
	if got := strings.Join(second.wait(t, 4), ", "); got != "begun 1 signed, failed 2 signed, needs-you 3 signed, over 4 signed" {
		t.Errorf("the second got %s", got)
	}
	for host, want := range map[string]Count{
		first.Listener.Addr().String():  {Number: 1, Delivered: 2, Dropped: 2},
		second.Listener.Addr().String(): {Number: 2, Delivered: 4},
	} {
		want.Host = host
		testutil.Eventually(t, "all are counted", func() bool { return slices.Contains(s.Counts(), want) })
	}
}

// TestBecome: URLs come and go while it runs. One that stays keeps its order and what waits; one that is gone gets nothing more.
func TestBecome(t *testing.T) {
	stays, gone, comes := newReceiver(t), newReceiver(t), newReceiver(t)
	config := func(urls ...string) Config {
		return Config{ClusterName: "main", Store: "s3://b/main", URLs: urls, Secret: []byte(secret)}
	}
	become := func(s *Sender, c Config) {
		next, err := New(c)
		testutil.Must(t, err)
		s.Become(next)
	}
	s := start(t, Config{})
	s.Tell(event(catalog.EventRestore, catalog.EventBegun, "nobody is told"))
	become(s, config(stays.URL, gone.URL))
	s.Tell(event(catalog.EventRestore, catalog.EventBegun, "1"))
	gone.wait(t, 1)
	become(s, config(comes.URL, stays.URL))
	s.Tell(event(catalog.EventRestore, catalog.EventDone, "2"))
	if got := strings.Join(stays.wait(t, 2), ", "); got != "begun 1 signed, done 2 signed" {
		t.Errorf("the one that stays got %s", got)
	}
	if got := strings.Join(comes.wait(t, 1), ", "); got != "done 2 signed" {
		t.Errorf("the one that comes got %s", got)
	}
	testutil.Eventually(t, "all is counted", func() bool {
		c := s.Counts()
		return len(c) == 2 && c[0].Delivered == 1 && c[1].Delivered == 2
	})
	become(s, Config{URLs: []string{stays.URL}, ClusterName: "main", Store: "s3://b/main"}) // no secret any more
	s.Tell(event(catalog.EventRestore, catalog.EventDone, "3"))
	if got := stays.wait(t, 1); got[2] != "done 3 plain" {
		t.Errorf("the one that stays got %s", got)
	}
	gone.mu.Lock()
	defer gone.mu.Unlock()
	if len(gone.requests) != 1 {
		t.Errorf("the one that is gone got %s", gone.requests)
	}
}

// TestBounded: a receiver that is away holds up nobody, and only the newest events wait for it.
func TestBounded(t *testing.T) {
	s, err := New(Config{URLs: []string{"http://127.0.0.1:1/x"}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxQueue {
		s.Tell(event(catalog.EventRestore, catalog.EventDone, fmt.Sprint(i)))
	}
	if got := s.Counts(); got[0].Waiting != maxQueue || got[0].Dropped != 2*maxQueue || got[0].Delivered != 0 {
		t.Errorf("%+v", got)
	}
	w := s.targets[0].waiting
	if len(w) != maxQueue || w[maxQueue-1].Text != fmt.Sprint(3*maxQueue-1) {
		t.Errorf("%d wait, the last is %s", len(w), w[len(w)-1].Text)
	}
	old := event(catalog.EventRestore, catalog.EventDone, "old")
	old.At = time.Now().Add(-2 * maxAge)
	if !s.targets[0].deliver(t.Context(), old) {
		t.Error("it isn't over with an event that is too old")
	}
}

func TestErrors(t *testing.T) {
	const token = "s3cr3t-t0ken"
	for _, raw := range []string{"ftp://host/" + token, "https:///" + token, token, "http://[::1" + token, "https://h/%zz" + token} {
		_, err := New(Config{URLs: []string{raw}})
		if err == nil || strings.Contains(err.Error(), token) {
			t.Errorf("%s: %v", raw, err)
		}
	}
	if _, err := New(Config{Secret: []byte("short")}); err == nil {
		t.Error("a short secret is taken")
	}
	s, err := New(Config{URLs: []string{"http://127.0.0.1:1/" + token}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.targets[0].post(t.Context(), nil); err == nil || strings.Contains(err.Error(), token) {
		t.Errorf("the error of a request: %v", err)
	}
}
