package rest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// serve answers the n-th request, counted from 1, by handle.
func serve(t *testing.T, handle func(n int64, w http.ResponseWriter, r *http.Request)) (url string, count *atomic.Int64) {
	t.Helper()
	count = &atomic.Int64{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handle(count.Add(1), w, r) }))
	t.Cleanup(srv.Close)
	return srv.URL, count
}

func TestTries(t *testing.T) {
	for _, tt := range []struct {
		status     int
		tries      int
		want       int64
		err, quick bool
	}{
		{status: 503, tries: 3, want: 3, err: true}, {status: 429, tries: 2, want: 2, err: true},
		{status: 503, tries: 0, want: 1, err: true},
		{status: 404, tries: 3, want: 1, err: true}, {status: 501, tries: 3, want: 1, err: true}, {status: 302, tries: 3, want: 1},
		{status: 401, tries: 1, want: 2, err: true},
	} {
		t.Run(fmt.Sprint(tt.status, tt.tries), func(t *testing.T) {
			url, count := serve(t, func(_ int64, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(tt.status) })
			requests := 0
			c := &Client{HTTP: NewHTTP(), Refused: func() {}, OnRequest: func(string) { requests++ }}
			resp, err := c.Do(t.Context(), Request{Op: "look", Method: http.MethodGet, URL: url, Tries: tt.tries, Pause: time.Millisecond})
			if err == nil {
				Drop(resp)
			}
			if (err != nil) != tt.err || count.Load() != tt.want || int64(requests) != tt.want || tt.err && Status(err) != tt.status {
				t.Errorf("%d requests (%d counted), %v; want %d", count.Load(), requests, err, tt.want)
			}
		})
	}
}

// The server says how long to wait, and a body is sent whole each time.
func TestRetryAfter(t *testing.T) {
	url, _ := serve(t, func(n int64, w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if string(data) != "abcdef" {
			t.Errorf("request %d has the body %q, %v", n, data, err)
		}
		if n == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	})
	c := &Client{HTTP: NewHTTP()}
	began := time.Now()
	resp, err := c.Do(t.Context(), Request{Method: http.MethodPut, URL: url, Tries: 2, Pause: time.Millisecond,
		Body: [][]byte{[]byte("abc"), []byte("def")}})
	if err != nil {
		t.Fatal(err)
	}
	Drop(resp)
	if d := time.Since(began); d < time.Second {
		t.Errorf("the second request came after %s", d)
	}
}

// A server that takes a request and never answers is given up, which leaves open what it has done.
func TestNoAnswer(t *testing.T) {
	release := make(chan struct{})
	url, _ := serve(t, func(int64, http.ResponseWriter, *http.Request) { <-release })
	t.Cleanup(func() { close(release) })
	c := &Client{HTTP: NewHTTP()}
	_, err := c.Do(t.Context(), Request{Method: http.MethodGet, URL: url, Timeout: 50 * time.Millisecond})
	if err == nil || !Unclear(err) || !strings.Contains(err.Error(), "no answer within 50ms") {
		t.Errorf("Do = %v", err)
	}
	e := blob.Fail(t.Context(), "get", "gs://b/k", err, func(e *blob.Error) { Classify(e, "") })
	if !errors.Is(e, blob.ErrTransient) {
		t.Errorf("it means %v", e)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Do(ctx, Request{Method: http.MethodGet, URL: url})
	e = blob.Fail(ctx, "get", "gs://b/k", err, func(e *blob.Error) { Classify(e, "") })
	if !errors.Is(e, context.Canceled) || errors.Is(e, blob.ErrTransient) {
		t.Errorf("canceled: %v", e)
	}
}

// A source of tokens that hangs does no harm as long as the old token lasts; then it is said, and one fetch is under way at most.
func TestTokensHang(t *testing.T) {
	var fetches atomic.Int64
	release := make(chan struct{})
	tokens := &Tokens{From: "the test", Wait: 20 * time.Millisecond, Fetch: func(context.Context) (Token, error) {
		if fetches.Add(1) > 1 {
			<-release
		}
		return Token{Value: "old", Expires: time.Now().Add(tokenLeft / 2)}, nil
	}}
	for range 3 {
		if token, err := tokens.Get(t.Context()); token != "old" || err != nil {
			t.Errorf("Get = %q, %v", token, err)
		}
	}
	tokens.Forget()
	_, err := tokens.Get(t.Context())
	var te *TokenError
	if !errors.As(err, &te) || !te.Transient || !strings.Contains(err.Error(), "the test gave no answer within 20ms") {
		t.Errorf("Get = %v", err)
	}
	if n := fetches.Load(); n != 2 {
		t.Errorf("%d fetches", n)
	}
	close(release)
}
