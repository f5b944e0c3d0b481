package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/peer"
	"github.com/etcd-manager/etcd-manager/pkg/status"
)

// view gathers what the status page shows, from memory alone.
func (d *daemon) view() status.View {
	o := d.manager.Outlook()
	leader, term := d.peers.Leader()
	v := status.View{
		ClusterName: d.o.clusterName, Node: d.id, Version: build().Version, Leader: leader, Leading: o.Leading, Term: term,
		Etcd: d.agent.LastStatus(), StoreRequests: d.requests.snapshot(),
		Doing: o.Doing, DoingSince: o.Since, Alarm: len(o.Attention) > 0, Attention: o.Attention, Source: o.Node, SourceAge: o.Age,
		Wanted: o.Wanted, Healthy: o.Healthy, StoreError: o.StoreError, NewestBackup: o.NewestBackup, Backups: o.Backups,
		BackupError: o.BackupError, PruneDenied: o.PruneDenied, PruneLocked: o.PruneLocked, Waiting: o.Waiting, Restore: o.Restore,
		Copies: o.Copies,
	}
	for _, c := range d.o.webhook.Counts() {
		v.Webhooks = append(v.Webhooks, status.Webhook(c))
	}
	v.Disk.TotalBytes, v.Disk.FreeBytes, v.Disk.Full = d.agent.Disk()
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
	for _, e := range o.Recent {
		v.Recent = append(v.Recent, status.Event{At: e.At, Text: e.Text})
	}
	p := o.Proof
	v.Proof = &status.Proof{Backup: p.Backup, At: p.At, Seconds: p.Took.Seconds(), Bad: p.Bad,
		ChainProblem: p.ChainProblem, Postponed: p.Postponed}
	if c := o.Changes; c != nil {
		v.Changes = &status.Changes{
			Seen: c.Seen, Archived: c.Archived, Until: c.Until, Waiting: c.Waiting, SpilledBytes: c.Spilled,
			Segments: c.Segments, Bytes: c.Bytes,
			Gaps: c.Gaps, LastGap: c.LastGap, Error: c.Error,
		}
	}
	return v
}

// certificateAttention says which CAs, and which certificates that can't be renewed, end soon.
func (d *daemon) certificateAttention() []cluster.Attention {
	if d.keeper == nil {
		return nil
	}
	var list []cluster.Attention
	for _, e := range d.keeper.Ending(time.Now()) {
		list = append(list, cluster.Attention{Kind: cluster.AttentionCertificate, Node: d.id, Text: e.Text, NoCommand: e.Way})
	}
	return list
}

// serveStatus answers on the metrics port.
func (d *daemon) serveStatus(ctx context.Context) error { return d.servePage(ctx, d.view) }

// servePage serves what view yields until ctx ends.
func (d *daemon) servePage(ctx context.Context, view func() status.View) error {
	l, err := net.Listen("tcp", net.JoinHostPort(d.o.address, fmt.Sprint(d.o.metricsPort)))
	if err != nil {
		return fmt.Errorf("--etcd-manager-metrics-port: %w", err)
	}
	s := status.Server(status.Handler(view))
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(peer.Limit(l)); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
