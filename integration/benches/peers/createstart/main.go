// Measures, through containerd's own client, what our bench measures through ours: the life of a container that runs
// /bin/true with null stdio, from its record and snapshot to their removal. One JSON line per phase on stdout.
//
// Built in GOPATH mode from Debian's golang-github-containerd-containerd-dev by ../measure.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"sort"
	"sync"
	"time"

	"github.com/containerd/containerd"
	"github.com/containerd/containerd/cio"
	"github.com/containerd/containerd/containers"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/oci"
	"github.com/containerd/typeurl"
)

// The phases in their order; "create_start_wait_delete" is all of them, timed as one.
var phases = []string{"container_create", "task_create", "task_start", "task_wait", "task_delete", "container_delete"}

func life(ctx context.Context, client *containerd.Client, image containerd.Image, id string, record func(string, time.Duration)) error {
	begin := time.Now()
	last := begin
	lap := func(phase string) {
		now := time.Now()
		record(phase, now.Sub(last))
		last = now
	}

	container, err := client.NewContainer(ctx, id,
		containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("/bin/true")))
	if err != nil {
		return err
	}
	lap("container_create")
	task, err := container.NewTask(ctx, cio.NullIO)
	if err != nil {
		return err
	}
	lap("task_create")
	exit, err := task.Wait(ctx)
	if err != nil {
		return err
	}
	if err := task.Start(ctx); err != nil {
		return err
	}
	lap("task_start")
	status := <-exit
	if code, _, err := status.Result(); err != nil || code != 0 {
		return fmt.Errorf("exit %d: %v", code, err)
	}
	lap("task_wait")
	if _, err := task.Delete(ctx); err != nil {
		return err
	}
	lap("task_delete")
	if err := container.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
		return err
	}
	lap("container_delete")
	record("create_start_wait_delete", time.Since(begin))
	return nil
}

// Makes records of containers, 32 at once, each with the default spec, and lists them.
func records(ctx context.Context, client *containerd.Client, n int) error {
	const atOnce = 32
	store := client.ContainerService()
	spec, err := oci.GenerateSpec(ctx, client, &containers.Container{ID: "record"})
	if err != nil {
		return err
	}
	any, err := typeurl.MarshalAny(spec)
	if err != nil {
		return err
	}
	var workers sync.WaitGroup
	failed := make(chan error, atOnce)
	begin := time.Now()
	for worker := 0; worker < atOnce; worker++ {
		workers.Add(1)
		go func(worker int) {
			defer workers.Done()
			for i := worker; i < n; i += atOnce {
				_, err := store.Create(ctx, containers.Container{
					ID: fmt.Sprintf("record-%d", i), Spec: any,
					Runtime: containers.RuntimeInfo{Name: "io.containerd.runc.v2"},
				})
				if err != nil {
					failed <- err
					return
				}
			}
		}(worker)
	}
	workers.Wait()
	select {
	case err := <-failed:
		return err
	default:
	}
	report("record_create", []float64{float64(time.Since(begin).Microseconds()) / 1000 / float64(n)})
	begin = time.Now()
	listed, err := store.List(ctx)
	if err != nil {
		return err
	}
	report(fmt.Sprintf("list_%d", len(listed)), []float64{float64(time.Since(begin).Microseconds()) / 1000})
	return nil
}

// What a call takes that does nothing: each sample is the mean of as many as our bench makes.
func versions(ctx context.Context, client *containerd.Client, n int) error {
	const calls = 2000
	var samples []float64
	for i := -1; i < n; i++ {
		begin := time.Now()
		for j := 0; j < calls; j++ {
			if _, err := client.Version(ctx); err != nil {
				return err
			}
		}
		if i >= 0 {
			samples = append(samples, float64(time.Since(begin).Nanoseconds())/1000/calls)
		}
	}
	reportIn("version", "us", samples)
	return nil
}

func report(what string, of []float64) { reportIn(what, "ms", of) }

func reportIn(what, unit string, of []float64) {
	sort.Float64s(of)
	json.NewEncoder(os.Stdout).Encode(map[string]interface{}{
		"peer": "containerd", "what": what, "unit": unit, "n": len(of),
		"min": of[0], "median": of[len(of)/2], "max": of[len(of)-1], "samples": of,
	})
}

func main() {
	address := flag.String("address", "", "containerd's socket")
	reference := flag.String("image", "", "an image that is unpacked already")
	n := flag.Int("n", 20, "how often")
	only := flag.Int("records", 0, "make and list so many records of containers, and nothing else")
	called := flag.Int("versions", 0, "ask for its version, in so many rounds, and nothing else")
	flag.Parse()

	client, err := containerd.New(*address)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := namespaces.WithNamespace(context.Background(), "default")
	if *only > 0 {
		if err := records(ctx, client, *only); err != nil {
			log.Fatal(err)
		}
		return
	}
	if *called > 0 {
		if err := versions(ctx, client, *called); err != nil {
			log.Fatal(err)
		}
		return
	}
	image, err := client.GetImage(ctx, *reference)
	if err != nil {
		log.Fatal(err)
	}

	samples := map[string][]float64{}
	for i := -2; i < *n; i++ { // the first two only warm up
		err := life(ctx, client, image, fmt.Sprintf("life-%d", i+2), func(phase string, took time.Duration) {
			if i >= 0 {
				samples[phase] = append(samples[phase], float64(took.Microseconds())/1000)
			}
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	// The time for each of many lives, eight at once.
	const atOnce = 8
	var workers sync.WaitGroup
	begin := time.Now()
	for worker := 0; worker < atOnce; worker++ {
		workers.Add(1)
		go func(worker int) {
			defer workers.Done()
			for i := 0; i < *n; i++ {
				if err := life(ctx, client, image, fmt.Sprintf("side-%d-%d", worker, i), func(string, time.Duration) {}); err != nil {
					log.Fatal(err)
				}
			}
		}(worker)
	}
	workers.Wait()
	each := float64(time.Since(begin).Microseconds()) / 1000 / float64(atOnce**n)
	samples["side_by_side"] = []float64{each}

	phases = append(phases, "side_by_side")
	for _, phase := range append([]string{"create_start_wait_delete"}, phases...) {
		report(phase, samples[phase])
	}
}
