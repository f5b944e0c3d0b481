// Command operator lists the backups of a store, plans a restore to a second ago, queues it and
// follows it to its end: with pkg/operator alone.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func main() {
	ctx, env := context.Background(), os.Getenv
	client := must(operator.Open(ctx, operator.Config{Store: os.Args[1], Env: env}))
	for _, b := range must(client.Backups(ctx)).Backups {
		fmt.Println("backup", b.Name, b.Size)
	}
	second := operator.Target{Time: time.Now().Add(-time.Second)}
	plan := must(client.PlanRestore(ctx, operator.RestoreRequest{Target: second, Options: operator.RestoreOptions{Now: true}}))
	fmt.Println("plan: revision", plan.Path.Revision, "from", plan.Path.Base, "in about", plan.Path.Estimate.Total)
	queued := must(client.Restore(ctx, plan))
	for event, err := range client.Follow(ctx, queued.Command.Name, operator.FollowOptions{}) {
		if end, ok := must(event, err).(operator.Ended); ok {
			fmt.Println("ended", end.Command.State(), end.Err())
		} else if state, ok := event.(operator.StateEntered); ok {
			fmt.Println("state", state.State)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}
