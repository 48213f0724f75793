package peers.flink;

import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.util.Collector;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import peers.Event;
import peers.EventParser;

/** Parses the records of the source. */
final class EventSchema implements KafkaRecordDeserializationSchema<Event> {
    @Override
    public void deserialize(ConsumerRecord<byte[], byte[]> record, Collector<Event> out) {
        out.collect(EventParser.parse(record.value()));
    }

    @Override
    public TypeInformation<Event> getProducedType() {
        return FlinkJob.EVENT;
    }
}
