package blobtest

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// race runs put n times at once with bodies of their own and returns the body of the only winner.
func (s *suite) race(n int, put func(body []byte) error) []byte {
	s.Helper()
	var wg sync.WaitGroup
	errs := make([]error, n)
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			errs[i] = put(fmt.Appendf(nil, "body of racer %d", i))
		})
	}
	close(start)
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner >= 0:
			s.Fatalf("racers %d and %d both won", winner, i)
		case err == nil:
			winner = i
		case !errors.Is(err, blob.ErrPreconditionFailed):
			s.Fatalf("racer %d: %v", i, err)
		}
	}
	if winner < 0 {
		s.Fatal("nobody won")
	}
	return fmt.Appendf(nil, "body of racer %d", winner)
}

func (s *suite) createRace() {
	for round := range 5 {
		key := fmt.Sprintf("race/%d", round)
		won := s.race(16, func(body []byte) error {
			_, err := s.put(key, body, blob.PutOptions{IfAbsent: true})
			return err
		})
		s.wantContent(key, won)
	}
}

// replaceRace has writers add to a counter; no addition may be lost.
func (s *suite) replaceRace() {
	const writers, additions = 8, 5
	s.mustPut("counter", []byte("0"), blob.PutOptions{})
	var wg sync.WaitGroup
	errs := make([]error, writers)
	for w := range writers {
		wg.Go(func() {
			for range additions {
				if errs[w] = s.add(w); errs[w] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		s.Fatal(err)
	}
	data, _, err := s.get("counter", blob.Range{})
	if err != nil {
		s.Fatal(err)
	}
	if count, _, _ := strings.Cut(string(data), " "); count != strconv.Itoa(writers*additions) {
		s.Errorf("the counter is %q, want %d", data, writers*additions)
	}
}

func (s *suite) add(writer int) error {
	for try := 0; ; try++ {
		data, info, err := s.get("counter", blob.Range{})
		if err != nil {
			return err
		}
		count, _, _ := strings.Cut(string(data), " ")
		n, err := strconv.Atoi(count)
		if err != nil {
			return err
		}
		// The writer's name makes the bytes, and so a version that is their hash, this writer's own.
		_, err = s.put("counter", fmt.Appendf(nil, "%d by writer %d, try %d", n+1, writer, try), blob.PutOptions{IfVersion: info.Version})
		if !errors.Is(err, blob.ErrPreconditionFailed) {
			return err
		}
	}
}
