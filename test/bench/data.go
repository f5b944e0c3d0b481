package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// mib scales a size by the flag.
func (s *settings) mib(n int) int { return max(8, int(float64(n)*s.size)) }

// makeSnapshot fills a database up to that size with values like those of API servers, and returns the path of a snapshot of it.
func (b *bench) makeSnapshot(mib int) string {
	dir := b.TempDir()
	network, port := b.freePorts(1)
	client, peer := fmt.Sprintf("http://%s.1:%d", network, port), fmt.Sprintf("http://%s.1:%d", network, port+1)
	cmd, exited := b.spawn(filepath.Join(dir, "log"), harness.Build(b).Manager, "etcd", "--name=fill",
		"--data-dir="+filepath.Join(dir, "data"),
		"--initial-cluster=fill="+peer, "--initial-advertise-peer-urls="+peer, "--listen-peer-urls="+peer,
		"--advertise-client-urls="+client, "--listen-client-urls="+client,
		"--quota-backend-bytes="+quota, "--unsafe-no-fsync", "--snapshot-count=500", "--snapshot-catchup-entries=100")
	defer func() {
		_ = cmd.Process.Kill() // it is not needed any more
		<-exited
		b.must(os.RemoveAll(filepath.Join(dir, "data")))
	}()
	b.firstAnswer(nil, []string{client}, write, time.Minute)
	c := b.dial(nil, client)
	defer c.Close()
	from := time.Now()
	b.fill(c, client, int64(mib)<<20)
	path := filepath.Join(dir, "snapshot.db")
	rd, err := c.Snapshot(b.ctx)
	b.must(err)
	defer rd.Close()
	f, err := os.Create(path)
	b.must(err)
	defer f.Close()
	n, err := io.Copy(f, rd)
	b.must(err)
	b.must(f.Sync())
	b.say("made a snapshot of %d MiB in %s", n>>20, round(time.Since(from)))
	return path
}

// fill writes from several clients until the database is that large.
func (b *bench) fill(c *clientv3.Client, url string, size int64) {
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for w := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(w)))
			for i := 0; ctx.Err() == nil; i++ {
				var ops []clientv3.Op
				for j := range 64 {
					ns := r.IntN(200)
					ops = append(ops, clientv3.OpPut(fmt.Sprintf("/registry/pods/namespace-%03d/app-%d-%d-%d", ns, w, i, j), object(r, ns)))
				}
				if _, err := c.Txn(ctx).Then(ops...).Commit(); err != nil && ctx.Err() == nil {
					errs <- err
					return
				}
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	for {
		select {
		case err := <-errs:
			b.Fatalf("fill the database: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		st, err := c.Status(ctx, url)
		b.must(err)
		if st.DbSize >= size {
			return
		}
	}
}

// object is like what an API server stores: much of it is the same in every object, and names, ids and times are not.
func object(r *rand.Rand, ns int) string {
	hex := func(n int) string {
		const digits = "0123456789abcdef"
		out := make([]byte, n)
		for i := range out {
			out[i] = digits[r.IntN(16)]
		}
		return string(out)
	}
	uid := func() string { return hex(8) + "-" + hex(4) + "-4" + hex(3) + "-a" + hex(3) + "-" + hex(12) }
	when := time.Date(2026, 1, 1, 0, 0, r.IntN(30_000_000), 0, time.UTC).Format(time.RFC3339)
	app := fmt.Sprintf("app-%03d", r.IntN(400))
	var b strings.Builder
	fmt.Fprintf(&b, `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"%s-%s-%s","generateName":"%s-","namespace":"namespace-%03d","uid":"%s","resourceVersion":"%d",`,
		app, hex(10), hex(5), app, ns, uid(), r.Uint32())
	fmt.Fprintf(&b, `"creationTimestamp":"%s","labels":{"app.kubernetes.io/name":"%s","pod-template-hash":"%s"},"annotations":{"checksum/config":"%s","checksum/secret":"%s"},`, when, app, hex(10), hex(64), hex(64))
	fmt.Fprintf(&b, `"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"%s-%s","uid":"%s","controller":true,"blockOwnerDeletion":true}]},`, app, hex(10), uid())
	fmt.Fprintf(&b, `"spec":{"volumes":[{"name":"kube-api-access-%s","projected":{"sources":[{"serviceAccountToken":{"expirationSeconds":3607,"path":"token"}},{"configMap":{"name":"kube-root-ca.crt","items":[{"key":"ca.crt","path":"ca.crt"}]}},{"downwardAPI":{"items":[{"path":"namespace","fieldRef":{"apiVersion":"v1","fieldPath":"metadata.namespace"}}]}}],"defaultMode":420}}],`, hex(5))
	fmt.Fprintf(&b, `"containers":[{"name":"main","image":"registry.example.com/team-%d/%s:v1.%d.%d","command":["/usr/local/bin/server","--listen=:8080","--log-level=info"],"env":[{"name":"POD_IP","valueFrom":{"fieldRef":{"apiVersion":"v1","fieldPath":"status.podIP"}}},{"name":"CONFIG_REVISION","value":"%s"},{"name":"BUILD","value":"%s"}],`, r.IntN(20), app, r.IntN(30), r.IntN(10), hex(40), hex(64))
	b.WriteString(`"resources":{"limits":{"cpu":"500m","memory":"512Mi"},"requests":{"cpu":"100m","memory":"128Mi"}},"livenessProbe":{"httpGet":{"path":"/healthz","port":8080,"scheme":"HTTP"},"initialDelaySeconds":10,"timeoutSeconds":1,"periodSeconds":10,"successThreshold":1,"failureThreshold":3},"terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File","imagePullPolicy":"IfNotPresent"}],`)
	fmt.Fprintf(&b, `"restartPolicy":"Always","terminationGracePeriodSeconds":30,"dnsPolicy":"ClusterFirst","serviceAccountName":"default","nodeName":"node-%03d","schedulerName":"default-scheduler","tolerations":[{"key":"node.kubernetes.io/not-ready","operator":"Exists","effect":"NoExecute","tolerationSeconds":300},{"key":"node.kubernetes.io/unreachable","operator":"Exists","effect":"NoExecute","tolerationSeconds":300}],"priority":0,"enableServiceLinks":true,"preemptionPolicy":"PreemptLowerPriority"},`, r.IntN(1000))
	fmt.Fprintf(&b, `"status":{"phase":"Running","conditions":[{"type":"Initialized","status":"True","lastProbeTime":null,"lastTransitionTime":"%s"},{"type":"Ready","status":"True","lastProbeTime":null,"lastTransitionTime":"%s"},{"type":"PodScheduled","status":"True","lastProbeTime":null,"lastTransitionTime":"%s"}],`, when, when, when)
	fmt.Fprintf(&b, `"hostIP":"10.%d.%d.%d","podIP":"100.%d.%d.%d","startTime":"%s","containerStatuses":[{"name":"main","state":{"running":{"startedAt":"%s"}},"ready":true,"restartCount":%d,"imageID":"registry.example.com/app@sha256:%s","containerID":"containerd://%s","started":true}],"qosClass":"Burstable"}}`,
		r.IntN(256), r.IntN(256), r.IntN(256), r.IntN(256), r.IntN(256), r.IntN(256), when, when, r.IntN(20), hex(64), hex(64))
	return b.String()
}

// putBackup makes a backup of the cluster out of a snapshot, and returns its name.
func (b *bench) putBackup(c *harness.Cluster, snapshot string) string {
	f, err := os.Open(snapshot)
	b.must(err)
	list, err := c.Catalog.Backups(b.ctx)
	b.must(err)
	name := catalog.NewBackupName(time.Now(), list.Names())
	facts := backup.Facts{ClusterName: "test", EtcdVersion: etcd.CompiledVersion,
		Spec: cluster.Spec{MemberCount: len(c.Nodes), EtcdVersion: etcd.CompiledVersion}, Reason: "bench"}
	m, err := backup.NewWriter(c.Catalog, backup.Options{ToolVersion: "bench"}).Write(b.ctx, name, facts, f, nil)
	b.must(err)
	b.say("stored %s: %d MiB, compressed to %d MiB (1:%.1f)", name, m.Raw.Size>>20, m.Stored.Size>>20,
		float64(m.Raw.Size)/float64(m.Stored.Size))
	return name
}

// restoreNow queues a restore that doesn't wait for a restart, and waits for its end.
func (b *bench) restoreNow(c *harness.Cluster, name string) catalog.Operation {
	cmd, err := c.Catalog.QueueRestore(b.ctx, name,
		cluster.Spec{MemberCount: len(c.Nodes), EtcdVersion: etcd.CompiledVersion}, catalog.RestoreOptions{Now: true})
	b.must(err)
	op := c.WaitOperation(cmd.Name, 20*time.Minute)
	if op.State != catalog.StateDone {
		b.Fatalf("the restore of %s ended as %s: %s", name, op.State, op.Reason)
	}
	c.WaitHealthy(len(c.Nodes))
	return op
}
