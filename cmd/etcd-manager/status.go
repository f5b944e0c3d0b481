package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/status"
)

// view gathers what the status page shows, from memory alone.
func (d *daemon) view() status.View {
	r := d.manager.Report()
	leader, term := d.peers.Leader()
	v := status.View{
		ClusterName: d.o.clusterName, Node: d.id, Version: version, Leader: leader, Leading: r.Leading, Term: term,
		Etcd: d.agent.LastStatus(), StoreRequests: d.requests.snapshot(),
	}
	for _, p := range d.peers.Peers() {
		v.Peers = append(v.Peers, status.Peer{ID: p.ID, Connected: p.Connected, Foreign: p.Foreign, Problem: p.Problem})
	}
	if d.keeper != nil {
		for _, c := range d.keeper.Status() {
			if v.CertificateExpiry.IsZero() || c.NotAfter.Before(v.CertificateExpiry) {
				v.CertificateExpiry = c.NotAfter
			}
		}
	}
	for _, e := range r.Recent {
		v.Recent = append(v.Recent, status.Event{At: e.At, Text: e.Text})
	}
	if !r.Leading {
		if leader == "" {
			v.Doing = d.manager.Waits()
		}
		return v
	}
	v.Doing, v.Alarm, v.StoreError = r.Why, r.Alarm, r.StoreError
	v.NewestBackup, v.Backups, v.BackupError = r.NewestBackup, r.Backups, r.BackupError
	v.Proof = &status.Proof{Backup: r.Proof.Backup, At: r.Proof.At, Seconds: r.Proof.Took.Seconds(), Bad: r.Proof.Bad, ChainProblem: r.Proof.ChainProblem, Postponed: r.Proof.Postponed}
	v.PruneDenied, v.PruneLocked = r.PruneDenied, r.PruneLocked
	if c := r.Changes; c != nil {
		v.Changes = &status.Changes{
			Seen: c.Seen, Archived: c.Archived, Until: c.Until, Waiting: c.Waiting, SpilledBytes: c.Spilled, Segments: c.Segments, Bytes: c.Bytes,
			Gaps: c.Gaps, LastGap: c.LastGap, Error: c.Error,
		}
	}
	for _, n := range r.Nodes {
		if n.Etcd.Healthy && !n.Etcd.Learner {
			v.Healthy++
		}
	}
	if r.Spec != nil {
		v.Wanted = r.Spec.MemberCount
	}
	for _, c := range r.Commands {
		text := "restore of " + c.Backup
		if !c.Ready {
			text += ", until the managers are restarted"
		}
		v.Waiting = append(v.Waiting, text)
	}
	if op := r.Operation; op != nil {
		v.Restore = fmt.Sprintf("%s: %s", op.Backup, op.State)
	}
	return v
}

// serveStatus answers on the metrics port.
func (d *daemon) serveStatus(ctx context.Context) error {
	l, err := net.Listen("tcp", net.JoinHostPort(d.o.address, fmt.Sprint(d.o.metricsPort)))
	if err != nil {
		return fmt.Errorf("--etcd-manager-metrics-port: %w", err)
	}
	s := &http.Server{Handler: status.Handler(d.view), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
