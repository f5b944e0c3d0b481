package operator

import (
	"context"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// EventLog reads what has happened to a cluster, as it comes.
type EventLog struct {
	c    *Client
	scan *catalog.EventScan
}

// Events begins to read what has happened to the cluster from a time on, as the managers that led have recorded it. They keep events for
// 30 days. It is for one goroutine at a time.
func (c *Client) Events(since time.Time) *EventLog { return &EventLog{c, c.catalog.ScanEvents(since)} }

// Next returns the events that were stored since the last call, oldest first; of very many only the newest. problems name objects
// that can't be read. After an error, another call goes on.
func (e *EventLog) Next(ctx context.Context) (events []catalog.Event, problems []error, err error) {
	ctx, cancel := e.c.limit(ctx)
	defer cancel()
	return e.scan.Next(ctx)
}
