package changelog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil/logtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

// poorSource fails at one of the things that are asked of it, in other words each time.
type poorSource struct {
	fails string
	n     *int
}

func (s poorSource) fail(what string) error {
	*s.n++
	if s.fails != what {
		return nil
	}
	return fmt.Errorf("%s fails for the %d. time", what, *s.n)
}

func (s poorSource) Revision(context.Context) (int64, uint64, error) { return 7, 1, s.fail("revision") }

func (s poorSource) WatchAll(context.Context, int64) (*client.Changes, error) {
	return nil, errors.Join(s.fail("watch"), errors.New("there are no changes"))
}

func (s poorSource) LeaseTTL(context.Context, int64) (int64, error) {
	return 0, errors.New("no leases")
}
func (s poorSource) Close() error { return nil }

// TestFailingRecorder: whatever it is that fails, recording logs at most ten lines a minute, and tries no more often than its delays say.
func TestFailingRecorder(t *testing.T) {
	const minutes = 10
	for what, store := range map[string]*blobtest.Fault{
		"dial": nil, "revision": nil, "watch": nil,
		"listing":    {Op: "list", Err: blobtest.Transient("list", "")},
		"reading":    {Op: "get", Err: blobtest.Denied("get", "", "s3:GetObject")},
		"writing":    {Op: "put", Err: blobtest.Transient("put", "")},
		"no members": nil,
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := blobtest.NewFaulty(blobtest.NewMemory())
				if store != nil {
					f.Add(*store)
				}
				n, dialed := 0, 0
				cfg := Config{ClusterName: "test", Node: "a", Term: 4, Token: "T", ToolVersion: "x", Catalog: catalog.New(f), Interval: time.Second,
					Gap: func(string) {}, Members: func() []Dialer {
						if what == "no members" {
							return nil
						}
						return []Dialer{func(context.Context) (Source, error) {
							dialed++
							return poorSource{what, &n}, poorSource{what, &n}.fail("dial")
						}}
					}}
				r, err := NewRecorder(cfg)
				must(t, err)
				ctx, cancel := context.WithTimeout(t.Context(), minutes*time.Minute)
				defer cancel()
				lines := logtest.Lines(t, func() {
					var wg sync.WaitGroup
					wg.Go(func() { must(t, r.Run(ctx)) })
					wg.Wait()
				})
				if len(lines) < 1 || len(lines) > 10*minutes {
					t.Errorf("%d lines in %d minutes, the last ones:\n%s", len(lines), minutes, strings.Join(lines[max(0, len(lines)-20):], "\n"))
				}
				if dialed > 12*minutes {
					t.Errorf("it was tried %d times in %d minutes", dialed, minutes)
				}
			})
		})
	}
}
