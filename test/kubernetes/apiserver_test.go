package kubernetes

import (
	"context"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	masterleases = "/registry/masterleases/"
	// leaseLife is what API servers use; they renew every ten seconds, which is renewal here, so that tests are quick.
	leaseLife = 15
	renewal   = time.Second
)

// endpointsOf is the content of a master lease.
func endpointsOf(address string, generation int64) *corev1.Endpoints { //nolint:staticcheck // master leases are of this type
	return &corev1.Endpoints{ //nolint:staticcheck // as above
		ObjectMeta: metav1.ObjectMeta{Generation: generation},
		Subsets:    []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: address}}}}, //nolint:staticcheck // as above
	}
}

// holder holds a master lease as an API server does: each time with a new lease of etcd and a higher generation.
type holder struct {
	stop context.CancelFunc
	wg   sync.WaitGroup
}

func hold(s *storage, address string) *holder {
	ctx, cancel := context.WithCancel(context.Background())
	h := &holder{stop: cancel}
	h.wg.Go(func() {
		tick := time.NewTicker(renewal)
		defer tick.Stop()
		for generation := int64(1); ; generation++ {
			renew(ctx, s, address, generation)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return h
}

// renew writes the entry once; an API server, too, tries again at the next time if etcd is away.
func renew(ctx context.Context, s *storage, address string, generation int64) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if l, err := s.client.Grant(ctx, leaseLife); err == nil {
		_, _ = s.update(ctx, masterleases+address, endpointsOf(address, generation), clientv3.WithLease(l.ID))
	}
}

// die ends it as a power cut does: the entry stays.
func (h *holder) die() {
	h.stop()
	h.wg.Wait()
}
