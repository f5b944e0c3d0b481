// Command informers is a number of clients of API servers, as there are in a cluster, that say what they see: for each server an informer, a bare watch, a
// contender for a leadership, and a reader that compares what the server answers from its cache with what stands in etcd. It is run by test/kubernetes.
//
//	informers -token=T -server=a=https://… -server=b=https://…
//
// It prints its state as a line of JSON twice a second. A line "write" on its standard input has it write objects all the time, "hold" ends that.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

const namespace = "default"

// state is what the clients of one server have seen.
type state struct {
	mu sync.Mutex
	// Of the informer.
	Informer                               content
	Lists, Watches, Adds, Updates, Deletes int
	Errors                                 map[string]int
	// Of the bare watch, which begins anew where it has ended.
	WatchEvents int
	WatchEnds   map[string]int
	// Of the contender.
	Leads    bool
	LostLead int
	// Of the reader: what the server answers from its cache, and what from etcd.
	Cached, Quorum content
	Endpoints      []string
	Failed         int
}

// content is a number of objects, and a hash that is the same for the same objects in the same versions.
type content struct {
	Objects int
	Hash    string
}

func contentOf(items []*corev1.ConfigMap) content {
	var lines []string
	for _, o := range items {
		lines = append(lines, o.Name+" "+o.ResourceVersion+" "+string(o.UID))
	}
	slices.Sort(lines)
	return content{len(items), fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(lines, "\n"))))[:12]}
}

type server struct {
	name   string
	client *kubernetes.Clientset
	state  state
	store  cache.Store
}

func main() {
	klog.SetOutput(os.Stderr)
	var urls []string
	token := flag.String("token", "", "bearer token")
	flag.Func("server", "name=URL of an API server; may be repeated", func(s string) error {
		urls = append(urls, s)
		return nil
	})
	flag.Parse()
	var servers []*server
	for _, u := range urls {
		name, host, _ := strings.Cut(u, "=")
		c, err := kubernetes.NewForConfig(&rest.Config{Host: host, BearerToken: *token, QPS: 200, Burst: 400, Timeout: 0,
			TLSClientConfig: rest.TLSClientConfig{Insecure: true}, ContentConfig: rest.ContentConfig{ContentType: "application/vnd.kubernetes.protobuf"}})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		servers = append(servers, &server{name: name, client: c, state: state{Errors: map[string]int{}, WatchEnds: map[string]int{}}})
	}
	ctx := context.Background()
	for _, s := range servers {
		go s.inform(ctx)
		go s.watch(ctx)
		go s.contend(ctx)
		go s.read(ctx)
	}
	var writing atomic.Bool
	var written, failed atomic.Int64
	go write(ctx, servers, &writing, &written, &failed)
	go report(servers, &written, &failed)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		writing.Store(in.Text() == "write")
	}
}

func report(servers []*server, written, failed *atomic.Int64) {
	for {
		out := map[string]any{"written": written.Load(), "failed": failed.Load()}
		of := map[string]json.RawMessage{}
		for _, s := range servers {
			s.state.mu.Lock()
			if s.store != nil {
				var items []*corev1.ConfigMap
				for _, o := range s.store.List() {
					items = append(items, o.(*corev1.ConfigMap))
				}
				s.state.Informer = contentOf(items)
			}
			of[s.name], _ = json.Marshal(&s.state)
			s.state.mu.Unlock()
		}
		out["servers"] = of
		line, _ := json.Marshal(out)
		fmt.Println(string(line))
		time.Sleep(500 * time.Millisecond)
	}
}

func (s *server) count(f func(*state)) {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	f(&s.state)
}

// reason is what an error means to a client.
func reason(err error) string {
	if r := apierrors.ReasonForError(err); r != metav1.StatusReasonUnknown {
		return string(r)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "timeout"
	}
	return "connection"
}

// inform runs a shared informer, as every controller does.
func (s *server) inform(ctx context.Context) {
	api := s.client.CoreV1().ConfigMaps(namespace)
	inf := cache.NewSharedInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			s.count(func(st *state) { st.Lists++ })
			return api.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			s.count(func(st *state) { st.Watches++ })
			return api.Watch(ctx, o)
		},
	}, &corev1.ConfigMap{}, 0)
	_ = inf.SetWatchErrorHandler(func(_ *cache.Reflector, err error) { s.count(func(st *state) { st.Errors[reason(err)]++ }) })
	_, _ = inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { s.count(func(st *state) { st.Adds++ }) },
		UpdateFunc: func(any, any) { s.count(func(st *state) { st.Updates++ }) },
		DeleteFunc: func(any) { s.count(func(st *state) { st.Deletes++ }) },
	})
	s.count(func(*state) { s.store = inf.GetStore() })
	inf.RunWithContext(ctx)
}

// watch follows without ever listing again, as "kubectl get --watch-only" does, and begins anew from now when it has ended.
func (s *server) watch(ctx context.Context) {
	for {
		w, err := s.client.CoreV1().ConfigMaps(namespace).Watch(ctx, metav1.ListOptions{})
		if err != nil {
			time.Sleep(200 * time.Millisecond)
			continue
		}
		end := "closed"
		for e := range w.ResultChan() {
			if e.Type == watch.Error {
				end = reason(apierrors.FromObject(e.Object))
				break
			}
			s.count(func(st *state) { st.WatchEvents++ })
		}
		w.Stop()
		s.count(func(st *state) { st.WatchEnds[end]++ })
	}
}

// contend takes part in an election, as kube-controller-manager and kube-scheduler do.
func (s *server) contend(ctx context.Context) {
	for {
		lock := &resourcelock.LeaseLock{LeaseMeta: metav1.ObjectMeta{Namespace: namespace, Name: "leader"}, Client: s.client.CoordinationV1(), LockConfig: resourcelock.ResourceLockConfig{Identity: s.name}}
		leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
			Lock: lock, LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(context.Context) { s.count(func(st *state) { st.Leads = true }) },
				OnStoppedLeading: func() {
					s.count(func(st *state) {
						if st.Leads {
							st.LostLead++
						}
						st.Leads = false
					})
				},
			},
		})
	}
}

// read lists from the server's cache and from etcd, and reads the endpoints of the kubernetes service.
func (s *server) read(ctx context.Context) {
	for {
		s.readOnce(ctx)
		time.Sleep(300 * time.Millisecond)
	}
}

func (s *server) readOnce(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	list := func(o metav1.ListOptions) (content, error) {
		l, err := s.client.CoreV1().ConfigMaps(namespace).List(ctx, o)
		if err != nil {
			return content{}, err
		}
		var items []*corev1.ConfigMap
		for i := range l.Items {
			items = append(items, &l.Items[i])
		}
		return contentOf(items), nil
	}
	cached, err1 := list(metav1.ListOptions{ResourceVersion: "0"})
	quorum, err2 := list(metav1.ListOptions{})
	//nolint:staticcheck // it is what the API servers write
	e, err3 := s.client.CoreV1().Endpoints(namespace).Get(ctx, "kubernetes", metav1.GetOptions{})
	s.count(func(st *state) {
		if err := errors.Join(err1, err2, err3); err != nil {
			st.Failed++
			st.Cached, st.Quorum, st.Endpoints = content{}, content{}, nil
			return
		}
		st.Cached, st.Quorum, st.Endpoints = cached, quorum, []string{}
		for _, sub := range e.Subsets {
			for _, a := range sub.Addresses {
				st.Endpoints = append(st.Endpoints, a.IP)
			}
		}
		slices.Sort(st.Endpoints)
	})
}

// write creates, changes and deletes objects, at one server after the other.
func write(ctx context.Context, servers []*server, on *atomic.Bool, written, failed *atomic.Int64) {
	for n := 0; ; n++ {
		time.Sleep(20 * time.Millisecond)
		if !on.Load() {
			continue
		}
		api := servers[n%len(servers)].client.CoreV1().ConfigMaps(namespace)
		name := fmt.Sprintf("object-%03d", n*7%150)
		one, cancel := context.WithTimeout(ctx, 2*time.Second)
		var err error
		if n%5 == 4 {
			err = api.Delete(one, name, metav1.DeleteOptions{})
		} else {
			o := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"n": fmt.Sprint(n)}}
			if _, err = api.Create(one, o, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
				_, err = api.Update(one, o, metav1.UpdateOptions{})
			}
		}
		cancel()
		switch {
		case err == nil:
			written.Add(1)
		case !apierrors.IsNotFound(err) && !apierrors.IsConflict(err):
			failed.Add(1)
		}
	}
}
