// Kinds decodes manifests of prometheus-operator and KEDA strictly into their own Go types: an unknown or duplicate
// field, or a value of another type, is an error. It prints the number of objects of each kind; other kinds are
// checked elsewhere, by kubernetes-validate.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	keda "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	prometheus "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	kubeyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// The kinds by API version and name, each with a constructor of an empty object.
var kinds = map[string]func() any{
	"monitoring.coreos.com/v1/ServiceMonitor": func() any { return new(prometheus.ServiceMonitor) },
	"monitoring.coreos.com/v1/PrometheusRule": func() any { return new(prometheus.PrometheusRule) },
	"keda.sh/v1alpha1/ScaledObject":           func() any { return new(keda.ScaledObject) },
}

// check decodes the objects of a file and adds them to the counts by kind.
func check(path string, counts map[string]int) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	reader := kubeyaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(text)))
	defer reader.Close()
	buffer := make([]byte, len(text)+1)
	for {
		length, err := reader.Read(buffer)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var head struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
			Metadata   struct {
				Name string `json:"name"`
			} `json:"metadata"`
		}
		if err := yaml.Unmarshal(buffer[:length], &head); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		kind := head.APIVersion + "/" + head.Kind
		create, known := kinds[kind]
		if !known {
			continue
		}
		if err := yaml.UnmarshalStrict(buffer[:length], create()); err != nil {
			return fmt.Errorf("%s: %s %s: %w", path, kind, head.Metadata.Name, err)
		}
		counts[kind]++
	}
}

func main() {
	counts := map[string]int{}
	for _, path := range os.Args[1:] {
		if err := check(path, counts); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		fmt.Printf("%s: %d objects\n", kind, counts[kind])
		if counts[kind] == 0 {
			fmt.Fprintln(os.Stderr, "expected at least one")
			os.Exit(1)
		}
	}
}
