"""Upscaling a video: frame by frame, with its times, its colours, its sound and its words, through PyAV (an optional package).

What cannot be decoded is left out and counted, times are made to rise as by FFmpeg itself, what MP4 does not hold is named.
"""

import contextlib
import heapq
import os
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils import ImageError, UserError, temporary_beside

MP4_SOUND = {"aac", "ac3", "alac", "eac3", "flac", "mp2", "mp3", "opus"}
BT601, BT709, UNSPECIFIED = 5, 1, 2  # matrices between RGB and YUV, by their numbers in the standards (ITU-T H.273)
VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"}
VIDEO_SUFFIXES |= {".ts", ".mts", ".flv", ".wmv", ".3gp"}
UNFINISHED = ".part.mp4"  # the ending, after a leading dot and a random name, of a video that is being written
OF_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder"}  # metadata that is not true of the result
FRAME_DURATION = 1 << 8  # FFmpeg's AV_CODEC_FLAG_FRAME_DURATION, which PyAV does not name
REORDERED = 16  # frames: the furthest that H.264 may show a frame from its place in the file
JUMP = 0.5  # seconds: times that go back so far begin anew, as where recordings were joined


def upscale_video(source, target, upscale_rgb, remarks=None) -> int:
    """Write `source` to the MP4 file `target` with each frame passed through `upscale_rgb`.

    That takes (H, W, 3) uint8, or uint16 if the video has more than 8 bits and the encoder keeps 10, and returns the same.
    Frames are streamed, so memory does not grow with the length; they are turned upright, which a phone leaves to the
    player. Times are kept as far as they rise, and the sound is copied. Returns the number of frames; what was lost or
    changed on the way is appended to the list `remarks`. Ctrl-C leaves what is done as a video of its own, TARGET_part.mp4.
    Raises ImageError for a file that is no video, UserError without the package av; then no file is left.
    """
    try:
        import av
    except ImportError:
        raise UserError("video needs the package av: pip install av") from None
    source, target = Path(source), Path(target)
    if source.exists() and not source.is_file():
        raise ImageError(f"{source}: cannot be read as a video (it is no file)")  # a named pipe would be waited for
    temporary = temporary_beside(target, UNFINISHED)
    remarks = [] if remarks is None else remarks
    try:
        # (absolute paths, or FFmpeg would take what is before a colon for a protocol)
        with av.open(os.path.abspath(source)) as reader, av.open(os.path.abspath(temporary), "w") as writer:
            count, stopped = _copy(av, reader, writer, upscale_rgb, remarks)
        if stopped:
            if count:
                part = target.with_name(f"{target.stem}_part.mp4")
                if len(os.fsencode(part.name)) > 255:
                    part = target.with_name(f"{target.stem[:60]}_part.mp4")
                temporary.replace(part)
                print(f"{source}: interrupted; its first {count} frames are in {part}")
            raise KeyboardInterrupt
        temporary.replace(target)
    except (av.error.FFmpegError, OSError, IndexError, ValueError) as error:
        raise ImageError(f"{source}: cannot be read or written as a video ({error})") from None
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _turn_of(frame):
    """How a player turns a frame: whether its sides change places, then whether its rows and its columns are reversed.

    By the display matrix, whose first two rows say where a pixel's column and row point to; it mirrors or turns by quarters.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    crossed = abs(b) + abs(c) > abs(a) + abs(d)
    return crossed, (b if crossed else d) < 0, (c if crossed else a) < 0


def _upright_rgb(frame, deep, turn):
    """The frame as (H, W, 3) uint8, or uint16 if `deep`. If it does not tell its matrix, that is the usual one of its size."""
    matrix = frame.colorspace if frame.colorspace != UNSPECIFIED else BT709 if frame.height >= 720 else BT601
    pixels = frame.reformat(format="rgb48le" if deep else "rgb24", src_colorspace=matrix).to_ndarray()
    crossed, reversed_rows, reversed_columns = turn
    pixels = pixels.swapaxes(0, 1) if crossed else pixels
    pixels = pixels[::-1] if reversed_rows else pixels
    return pixels[:, ::-1] if reversed_columns else pixels


def _tag_colours(encoder, frame):
    """Let the stream say what its colours mean, or a player would guess, and by the new size."""
    encoder.colorspace, encoder.color_range = BT709, 1  # 1: luma from 16 to 235
    encoder.color_primaries, encoder.color_trc = frame.color_primaries, frame.color_trc


class _Track:
    """A sound track of the result, or subtitles: as they are, or sound as AAC where MP4 does not hold it."""

    def __init__(self, writer, source):
        context = source.codec_context
        self.copied, self.last = source.type != "audio" or context.codec.canonical_name in MP4_SOUND, None
        if self.copied:
            self.stream = writer.add_stream_from_template(source)
        else:
            layout = "mono" if context.layout.nb_channels == 1 else "stereo"  # AVI does not name its own
            self.stream = writer.add_stream("aac", rate=source.rate, layout=layout)
        self.stream.metadata.update(_words(source))

    def packets(self, packet) -> list:
        """What a packet of the source becomes; the last, which is empty, brings out what is left."""
        if not self.copied:
            packets = [result for frame in packet.decode() for result in self.stream.encode(frame)]
            return packets + ([] if packet.size else list(self.stream.encode()))
        if not packet.size:
            return []
        if packet.dts is None:
            packet.dts = packet.pts if packet.pts is not None else (self.last or 0) + 1
        if self.last is not None and packet.dts <= self.last:
            packet.dts, packet.pts = self.last + 1, max(packet.pts or 0, self.last + 1)
        self.last, packet.stream = packet.dts, self.stream
        return [packet]


def _words(stream):
    """The title and the language of a stream, which MP4 holds."""
    return {key: stream.metadata[key] for key in ("language", "title") if stream.metadata.get(key, "und") != "und"}


def _tracks(writer, reader, video, remarks):
    """{stream: its track} of all that MP4 holds beside the picture; the rest is named in one remark."""
    tracks, dropped = {}, Counter()
    for stream in reader.streams:
        codec = getattr(stream.codec_context, "name", None)
        if stream.type == "audio" and codec or stream.type == "subtitle" and codec == "mov_text":
            tracks[stream] = _Track(writer, stream)
        elif stream != video:
            dropped[f"{stream.type} ({codec})" if codec else stream.type] += 1
    if dropped:
        remarks.append("dropped, since MP4 does not hold it here: " + ", ".join(f"{n} {what}" for what, n in dropped.items()))
    writer.metadata.update({key: value for key, value in reader.metadata.items() if key.lower() not in OF_THE_FILE})
    if chapters := reader.chapters():
        writer.set_chapters(chapters)
    return tracks


class _Clock:
    """Times of packets that go on where those of a file begin anew, by the same for picture and sound."""

    def __init__(self):
        self.offsets = [0]  # seconds, of each stretch of the file
        self.stretch, self.last, self.end = {}, {}, 0

    def set(self, packet):
        if packet.dts is None:
            return
        stream, time = packet.stream, float(packet.dts * packet.time_base)
        number = self.stretch.get(stream, 0)
        if time < self.last.get(stream, time) - JUMP:
            number += 1
            if number == len(self.offsets):
                self.offsets.append(self.end - time)
        self.stretch[stream], self.last[stream] = number, time
        ticks = round(self.offsets[number] / packet.time_base)
        packet.dts += ticks
        if packet.pts is not None:
            packet.pts += ticks
        time = packet.dts if packet.pts is None else packet.pts
        self.end = max(self.end, float((time + (packet.duration or 0)) * packet.time_base))


def _packets(av, reader, streams, faults):
    """The packets of the streams, with times that go on; a file that breaks off is counted."""
    clock = _Clock()
    try:
        for packet in reader.demux(*streams):
            clock.set(packet)
            yield packet
        start, length = ((value or 0) / av.time_base for value in (reader.start_time, reader.duration))
        faults["end"] += clock.end < start + length - 0.3  # seconds, of which the last frame may be silent
    except av.error.FFmpegError:
        faults["end"] += 1


def _decoded(av, packet, faults):
    """The frames of a packet; packets are counted, and those of them that cannot be decoded."""
    faults["sent"] += packet.size > 0
    try:
        return packet.decode()
    except av.error.EOFError:
        return []
    except av.error.FFmpegError:
        faults["packets"] += 1
        return []


class _Ordered:
    """Frames with times that rise: as their decoder brings them, with their own times sorted, which AVI confuses."""

    def __init__(self, reordered):
        self.window = REORDERED if reordered else 0
        self.frames, self.times, self.last, self.step = [], [], None, 1

    def add(self, frame, step):
        """The frames that are ready when this one has come; `step` is the usual time between two, in its units."""
        self.step = step
        time = frame.pts if frame.pts is not None else frame.dts
        if time is None:
            time = max([*self.times, -step if self.last is None else self.last]) + step
        heapq.heappush(self.times, time)
        self.frames.append(frame)
        return self.rest(self.window)

    def rest(self, window=0):
        while len(self.frames) > window:
            frame, time = self.frames.pop(0), heapq.heappop(self.times)
            frame.pts = self.last = time if self.last is None or time > self.last else self.last + 1
            yield frame


class _Woven:
    """Frames without the comb of interlaced video, by FFmpeg's bwdif, from the first on that says that it is interlaced."""

    def __init__(self, av, stream):
        self.av, self.stream, self.graph, self.combed = av, stream, None, False

    def frames(self, frame):
        """What comes out for a frame, or for None at the end."""
        if self.graph is None:
            if frame is None or not frame.interlaced_frame or "bwdif" not in self.av.filter.filters_available:
                self.combed |= frame is not None and frame.interlaced_frame
                return [] if frame is None else [frame]
            self.graph = self.av.filter.Graph()
            source, sink = self.graph.add_buffer(template=self.stream), self.graph.add("buffersink")
            bwdif = self.graph.add("bwdif", "mode=send_frame:deint=interlaced")
            source.link_to(bwdif)
            bwdif.link_to(sink)
            self.graph.configure()
        self.graph.push(frame)
        found = []
        with contextlib.suppress(BlockingIOError, self.av.error.EOFError):
            while True:
                found.append(self.graph.pull())
        return found


class _Picture:
    """The encoder of the frames, made when the first has told the size."""

    def __init__(self, av, writer, source, upscale_rgb, remarks):
        self.av, self.writer, self.source, self.upscale_rgb = av, writer, source, upscale_rgb
        self.stream, self.count, self.turn, self.remarks = None, 0, (False, False, False), remarks
        self.start = self.end = self.first = None  # of the frames, in seconds; the time of the first packet to decode
        formats = {form.name for form in av.codec.Codec("libx264", "w").video_formats}
        parts = source.format.components if source.format else ()
        bits = max((part.bits for part in parts), default=8)
        self.deep = bits > 8 and "yuv420p10le" in formats
        if bits > 8 and (bits > 10 or not self.deep):
            remarks.append(f"of its {bits} bits a channel, {10 if self.deep else 8} are kept")
        self.format = "yuv420p10le" if self.deep else "yuv420p"
        if source.metadata.get("alpha_mode") == "1" or any(part.is_alpha for part in parts):  # VP9's is a stream of its own
            remarks.append("its transparency is dropped, since MP4 does not hold it")

    def add(self, frame):
        """Upscale and write a frame."""
        pixels = self.upscale_rgb(_upright_rgb(frame, self.deep, self.turn))
        # yuv420p halves the colours' resolution, so it needs even sides.
        odd = [side for side, length in zip(("row", "column"), pixels.shape) if length % 2]
        pixels = pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2]
        if self.stream is None:
            if odd:
                self.remarks.append(f"without its last {' and '.join(odd)}, since this MP4 holds even sides alone")
            self._start(pixels, frame)
        result = self.av.VideoFrame.from_ndarray(pixels.copy(), format="rgb48le" if self.deep else "rgb24")
        result = result.reformat(format=self.format, dst_colorspace=BT709)
        result.pts, result.duration, result.time_base = frame.pts, frame.duration or 0, frame.time_base
        self.start = frame.pts * frame.time_base if self.start is None else self.start
        self.end = (frame.pts + (frame.duration or 0)) * frame.time_base
        self._mux(self.stream.encode(result))
        self.count += 1

    def finish(self):
        """Write what the encoder still has; the last packet, which may be of an earlier frame, tells when the last one ends."""
        packets = self.stream.encode()
        if packets:
            last, first = packets[-1], packets[0].dts if self.first is None else self.first
            length = round((self.end - self.start) / last.time_base)
            last.duration = max(last.duration or 0, length - (last.dts - first))
        self._mux(packets)

    def _mux(self, packets):
        if packets and self.first is None:
            self.first = packets[0].dts
        self.writer.mux(packets)

    def _start(self, pixels, frame):
        rate = self.source.average_rate or self.source.guessed_rate
        self.stream = stream = self.writer.add_stream("libx264", rate=rate, options={"crf": "17"})
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = self.format
        stream.codec_context.time_base = self.source.time_base  # frames need not come at a steady rate
        stream.codec_context.flags |= FRAME_DURATION
        aspect = self.source.sample_aspect_ratio  # of a pixel
        if aspect:
            stream.codec_context.sample_aspect_ratio = 1 / aspect if self.turn[0] else aspect
        stream.metadata.update(_words(self.source))
        _tag_colours(stream.codec_context, frame)


def _copy(av, reader, writer, upscale_rgb, remarks):
    """Upscale the main video stream of `reader` into `writer`, with its sound; returns (frames, whether Ctrl-C stopped it)."""
    video, faults, stopped = reader.streams.best("video"), Counter(), False  # which is no cover
    if video is None:
        raise ValueError("no picture in it")
    tracks = _tracks(writer, reader, video, remarks)
    picture, woven = _Picture(av, writer, video, upscale_rgb, remarks), _Woven(av, video)
    ordered = _Ordered(video.codec_context.has_b_frames)
    rate = video.average_rate or video.guessed_rate or 25
    bar = tqdm(total=video.frames or None, unit="frame", leave=False, disable=None)

    def show(frame):
        for whole in woven.frames(frame):
            picture.add(whole)
            bar.update()

    # The sound waits in `packets` until the first frame has told the size, since a stream must be whole before it is used.
    packets = []
    try:
        for packet in _packets(av, reader, [video, *tracks], faults):
            if packet.stream in tracks:
                try:
                    packets += tracks[packet.stream].packets(packet)
                except av.error.InvalidDataError:
                    faults["sound"] += 1
            else:
                for frame in _decoded(av, packet, faults):
                    picture.turn = _turn_of(frame)  # the filter may not carry it
                    for ready in ordered.add(frame, round(1 / (rate * frame.time_base)) or 1):
                        show(ready)
            if picture.count:
                writer.mux(packets)
                packets = []
        for ready in ordered.rest():
            show(ready)
        show(None)
    except KeyboardInterrupt:
        stopped = True
    bar.close()
    if picture.stream is None:
        if stopped:
            raise KeyboardInterrupt
        raise ValueError("no frame in it")
    picture.finish()
    writer.mux(packets)
    if faults["packets"]:
        lost = max(faults["packets"], faults["sent"] - picture.count)  # with those that needed them
        remarks.append(f"{faults['packets']} damaged packets of the picture could not be decoded: {lost} frames are left out")
    if faults["sound"]:
        remarks.append(f"{faults['sound']} damaged packets of the sound could not be decoded and are silent")
    if faults["end"]:
        remarks.append("the file ends before its time: it has been read as far as it goes")
    if woven.graph:
        remarks.append("interlaced: the two fields of each frame have become one picture (bwdif)")
    if woven.combed:
        remarks.append("interlaced, and left so, since this FFmpeg lacks bwdif: expect combs where something moves")
    return picture.count, stopped
