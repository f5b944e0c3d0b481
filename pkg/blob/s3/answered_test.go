package s3

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// TestAnswered: a refusal is an answer. That nothing came in time, or that the connection broke, is none: such a store hangs.
func TestAnswered(t *testing.T) {
	var end chan struct{}
	for name, x := range map[string]struct {
		server http.HandlerFunc
		want   bool
	}{
		"denied":       {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, true},
		"not possible": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusMethodNotAllowed) }, true},
		"silence":      {func(http.ResponseWriter, *http.Request) { <-end }, false},
		"body taken, then silence": {func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-end
		}, false},
		"cut off": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			end = make(chan struct{})
			s := fake(t, x.server)
			t.Cleanup(func() { close(end) }) // before the server ends, which waits for its requests
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			_, err := s.Put(ctx, "k", strings.NewReader("x"), blob.PutOptions{})
			if err == nil || answered(err) != x.want {
				t.Errorf("%v counts as an answer: %t", err, answered(err))
			}
		})
	}
	if !answered(nil) {
		t.Error("a success is no answer")
	}
}
